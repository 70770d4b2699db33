//! Standard output and standard error: results on one, the rest on the other, and what happens when they are closed.

use clap::error::ErrorKind;
use qtool::error::{escape, escape_lines, show_line, show_text};
use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;

/// Why a command did not succeed.
pub(super) type Failed = anyhow::Error;

/// Writes text for people to standard output. Names in it are escaped where they come in; what was missed there is here, so that no
/// file drives a terminal.
pub(super) fn text(text: &str) -> Result<(), Failed> {
    result(&escape_lines(text))
}

/// Writes `text` to standard output as it is. A reader who has seen enough (`| head`) is no error.
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
    result(&(qtool::visible::to_json(value)? + "\n"))
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
        lines += &format!("hint: {}\n", show_line(hint));
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
        let _ = io::stderr().write_all(in_one_line(error.kind(), &visible(error).unwrap_or_else(|| error.render().to_string())).as_bytes());
        return ExitCode::from(super::USAGE);
    }
    let text = if color() { error.render().ansi().to_string() } else { error.render().to_string() };
    match result(&text) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failure(&error),
    }
}

/// What clap says of a mistake, in the form of all errors: its first paragraph in a line, and tips as hints.
fn in_one_line(kind: ErrorKind, text: &str) -> String {
    let (message, rest) = text.split_once("\n\n").unwrap_or((text, ""));
    let message: Vec<&str> = message.trim_start_matches("error: ").lines().map(str::trim).collect();
    let tips = rest.lines().filter_map(|line| line.trim().strip_prefix("tip: "));
    let help = rest.lines().any(|line| line.contains("--help")).then_some("--help lists all options");
    // A path that the shell made of a pattern.
    let is_path = kind == ErrorKind::UnknownArgument && !text.starts_with("error: unexpected argument '-");
    let takes_one = is_path && std::env::args_os().any(|word| word == "--samples" || word == "--stats");
    let one = takes_one.then_some("--samples and --stats take one path each time: give a directory, or repeat the option");
    let hints: String = one.into_iter().chain(tips).chain(help).map(|hint| format!("hint: {}\n", escape(hint))).collect();
    format!("qtool: error: {}\n{hints}", escape(&message.join(" ")))
}

/// What a mistake is like when words that do not fit a terminal, such as names of files that the shell took from a directory, are
/// escaped and shortened. `None` if all words do.
fn visible(error: &clap::Error) -> Option<String> {
    let words: Vec<_> = std::env::args_os().collect();
    let shown: Vec<String> = words.iter().map(|word| show_text(&word.to_string_lossy()).to_string()).collect();
    if shown.iter().zip(&words).all(|(shown, word)| shown.as_str() == word) {
        return None;
    }
    let text = |error: &clap::Error| escape_lines(&error.render().to_string());
    Some(super::command().try_get_matches_from(&shown).err().filter(|again| again.kind() == error.kind()).map_or_else(
        // The words are right now, so nothing of them is needed.
        || format!("error: {}\n", error.kind()),
        |again| text(&again),
    ))
}

/// Whether standard output may be coloured.
fn color() -> bool {
    io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}
