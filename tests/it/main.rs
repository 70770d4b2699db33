//! The program from the outside: a module for each command or promise. Nothing but the built `qtool` is needed.

mod corpus;
mod destination;
mod directory;
mod golden;
mod quantize;
mod selection;
mod support;
mod values;
