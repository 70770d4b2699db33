//! Observers that are not qtool's own: commands that a recipe names, and implementations of [`Observer`](super::Observer) that a
//! Rust program registers.
//!
//! A command is run once for each tensor. It is given all values, and it prints a range for the whole tensor or one for each
//! group; `docs/custom-observers.md` is the protocol.

mod children;
mod command;
mod feed;
mod question;
mod registered;
mod reply;
mod table;

pub use children::kill_commands;
pub(crate) use command::{Command, ValueStream};
pub(crate) use question::{Question, Subject};
pub(crate) use registered::Registered;
pub use table::{CustomObserver, Observers, ValueFormat};
