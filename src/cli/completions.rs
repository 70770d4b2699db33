//! `qtool completions`.

use super::{Done, print};

/// Print completions for a shell
#[derive(clap::Args)]
pub(super) struct Arguments {
    /// The shell
    shell: clap_complete::Shell,
}

pub(super) fn run(arguments: &Arguments) -> Done {
    let mut script = Vec::new();
    clap_complete::generate(arguments.shell, &mut super::command(), "qtool", &mut script);
    print::result(&String::from_utf8_lossy(&script))
}
