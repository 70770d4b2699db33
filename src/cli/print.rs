//! Standard output and standard error: results on one, the rest on the other, and what happens when they are closed.

use clap::error::ErrorKind;
use qtool::error::escape;
use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;

/// Why a command did not succeed.
pub(super) type Failed = anyhow::Error;

/// Writes `text` to standard output. A reader who has seen enough (`| head`) is no error.
pub(super) fn result(text: &str) -> Result<(), Failed> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        Err(source) => Err(qtool::Error::Io { path: "standard output".into(), action: "write", source }.into()),
        Ok(()) => Ok(()),
    }
}

/// Writes a JSON document and a newline to standard output.
pub(super) fn json(value: &impl serde::Serialize) -> Result<(), Failed> {
    result(&(serde_json::to_string_pretty(value)? + "\n"))
}

/// The error of a check that was carried out and did not pass.
pub(super) fn check_failed(message: String) -> Failed {
    qtool::Error::Check(message).into()
}

/// Prints what went wrong and what can be done about it, and names the exit code.
pub(super) fn failure(error: &Failed) -> ExitCode {
    let known = error.downcast_ref::<qtool::Error>();
    // Errors of the library say all in one line; others are told with their causes.
    let message = known.map_or_else(|| format!("{error:#}"), ToString::to_string);
    let mut lines = format!("qtool: error: {}\n", escape(&message));
    if let Some(hint) = known.and_then(qtool::Error::hint) {
        lines += &format!("hint: {}\n", escape(hint));
    }
    // With standard error closed there is nobody left to tell.
    let _ = io::stderr().write_all(lines.as_bytes());
    ExitCode::from(known.map_or(1, qtool::Error::exit_code))
}

/// Help and version go to standard output, mistakes to standard error.
pub(super) fn clap_error(error: &clap::Error) -> ExitCode {
    if error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        let _ = error.print();
        return ExitCode::from(super::USAGE);
    }
    if error.use_stderr() {
        // With standard error closed there is nobody left to tell.
        let _ = io::stderr().write_all(in_one_line(&error.render().to_string()).as_bytes());
        return ExitCode::from(super::USAGE);
    }
    let text = if color() { error.render().ansi().to_string() } else { error.render().to_string() };
    match result(&text) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failure(&error),
    }
}

/// What clap says of a mistake, in the form of all errors: its first paragraph in a line, and tips as hints.
fn in_one_line(text: &str) -> String {
    let (message, rest) = text.split_once("\n\n").unwrap_or((text, ""));
    let message: Vec<&str> = message.trim_start_matches("error: ").lines().map(str::trim).collect();
    let tips = rest.lines().filter_map(|line| line.trim().strip_prefix("tip: "));
    let help = rest.lines().any(|line| line.contains("--help")).then_some("--help lists all options");
    let hints: String = tips.chain(help).map(|hint| format!("hint: {}\n", escape(hint))).collect();
    format!("qtool: error: {}\n{hints}", escape(&message.join(" ")))
}

/// Whether standard output may be coloured.
fn color() -> bool {
    io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}
