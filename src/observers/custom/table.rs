//! The table `[[observer]]` of a recipe, and what a program adds to it.

use super::{Command, Registered};
use crate::error::{Error, Result, escape, show_name};
use crate::formats::shorten;
use crate::method::Method;
use crate::observers::{OBSERVERS, Observer, ObserverChoice, Target};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

/// How a command is given values.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ValueFormat {
    /// One array of f32, in NumPy's format.
    #[default]
    Npy,
    /// A safetensors file with one tensor of f32, `tensor`.
    Safetensors,
}

impl ValueFormat {
    fn is_default(&self) -> bool {
        *self == ValueFormat::default()
    }
}

/// Seconds that a command may take for one tensor.
const TIMEOUT: f64 = 60.0;

/// Most seconds that a recipe may allow: a week.
const LONGEST_TIMEOUT: f64 = 7.0 * 24.0 * 3600.0;

/// One `[[observer]]` of a recipe: a command that chooses ranges.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CustomObserver {
    /// The program and its arguments. A program with a `/` in its name is looked for from the directory of the recipe's file,
    /// in which it runs, too; others are looked for in `PATH`.
    pub command: Vec<String>,
    /// How it is given values. Default: `npy`.
    #[serde(default, skip_serializing_if = "ValueFormat::is_default")]
    pub input: ValueFormat,
    /// What rules and options call it.
    pub name: String,
    /// Seconds that it may take for one tensor. Default: 60.
    #[serde(default = "default_timeout", skip_serializing_if = "is_default_timeout")]
    pub timeout: f64,
}

fn default_timeout() -> f64 {
    TIMEOUT
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes fields by reference")]
fn is_default_timeout(timeout: &f64) -> bool {
    *timeout == TIMEOUT
}

impl CustomObserver {
    fn check(&self) -> Result<()> {
        let shown = show_name(&self.name);
        check_name(&self.name)?;
        if self.command.first().is_none_or(String::is_empty) {
            return Err(Error::Usage(format!("observer {shown}: command: expected a program and its arguments, found none")));
        }
        if self.command.iter().any(|word| word.contains('\0')) {
            return Err(Error::Usage(format!("observer {shown}: command: expected text without NUL, found one")));
        }
        if !(self.timeout > 0.0 && self.timeout <= LONGEST_TIMEOUT) {
            let found = self.timeout;
            return Err(Error::Usage(format!("observer {shown}: timeout: expected seconds up to {LONGEST_TIMEOUT}, found {found}")));
        }
        Ok(())
    }
}

/// Whether something new can be called `name`.
fn check_name(name: &str) -> Result<()> {
    let shown = show_name(name);
    let is_word = |word: &str| !word.is_empty() && word.bytes().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
    if !name.split('-').all(is_word) || !name.starts_with(|c: char| c.is_ascii_lowercase()) {
        return Err(Error::Usage(format!("observer {shown}: name: expected lower-case words with hyphens between them, found another")));
    }
    if OBSERVERS.iter().any(|entry| entry.name == name) {
        return Err(Error::Usage(format!("observer {shown}: name: expected a new one, found that of an observer of qtool")));
    }
    Ok(())
}

/// The observers of a recipe besides those in [`OBSERVERS`], by name. In a recipe's file, and in a sidecar, are its commands only.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(try_from = "Vec<CustomObserver>", into = "Vec<CustomObserver>")]
pub struct Observers {
    commands: Vec<Arc<Command>>,
    /// Places of commands by name.
    places: HashMap<String, usize>,
    registered: Vec<Registered>,
    may_run: bool,
}

impl TryFrom<Vec<CustomObserver>> for Observers {
    type Error = Error;

    fn try_from(table: Vec<CustomObserver>) -> Result<Self> {
        let mut observers = Observers::default();
        for observer in table {
            observers.add_command(observer)?;
        }
        Ok(observers)
    }
}

impl From<Observers> for Vec<CustomObserver> {
    fn from(observers: Observers) -> Self {
        observers.commands.iter().map(|command| command.observer.clone()).collect()
    }
}

impl Observers {
    /// Adds a command, as `[[observer]]` in a recipe's file does. It runs in the current directory.
    ///
    /// # Errors
    ///
    /// [`Error::Usage`] if the name is taken or is not made of lower-case words with hyphens between them, if there is no command, or if the timeout is not positive.
    pub fn add_command(&mut self, observer: CustomObserver) -> Result<()> {
        observer.check()?;
        self.check_free(&observer.name)?;
        self.places.insert(observer.name.clone(), self.commands.len());
        self.commands.push(Arc::new(Command::new(observer, Path::new(""))));
        Ok(())
    }

    /// Adds an observer that `build` makes, one for each group of a weight or for each activation. Rules call it `name`.
    ///
    /// Groups of a weight are one batch each, in the order they are stored. The values of an activation, from all samples, are one
    /// batch in ascending order; each is within 0.2 % of what it was.
    ///
    /// A range need not include 0, but its ends must be finite and in order, or the run fails with an [`Error`] that names the
    /// tensor.
    ///
    /// # Errors
    ///
    /// [`Error::Usage`] if the name is taken or is not made of lower-case words with hyphens between them.
    pub fn register(&mut self, name: &str, build: impl Fn(&Target) -> Box<dyn Observer> + Send + Sync + 'static) -> Result<()> {
        check_name(name)?;
        self.check_free(name)?;
        self.registered.push(Registered::new(name, build));
        Ok(())
    }

    fn check_free(&self, name: &str) -> Result<()> {
        match self.places.contains_key(name) || self.registered.iter().any(|entry| *entry.name == *name) {
            true => Err(Error::Usage(format!("observer {}: name: expected it once, found it twice", show_name(name)))),
            false => Ok(()),
        }
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.names().next().is_none()
    }

    /// Whether a recipe's file has nothing to say of them.
    pub(crate) fn has_no_commands(&self) -> bool {
        self.commands.is_empty()
    }

    /// Allows commands to run: by default they may not, as recipes come from strangers. No file can say so.
    pub fn allow_commands(&mut self) {
        self.may_run = true;
    }

    /// Whether all of `methods` that are commands may run.
    ///
    /// # Errors
    ///
    /// [`Error::Usage`] for one that may not; as [`Observers::choose`].
    pub(crate) fn check_allowed<'m>(&self, methods: impl Iterator<Item = &'m Method>) -> Result<()> {
        for method in methods {
            let choice = self.choose(method)?;
            if let Some(Command { observer, .. }) = choice.command().filter(|_| !self.may_run) {
                let words = escape(&shorten(&observer.command.join(" ")));
                let error =
                    Error::Usage(format!("observer {}: expected permission to run `{words}`, found none", show_name(&observer.name)));
                return Err(error.with_hint("--allow-commands lets the commands of a recipe run; look at them first"));
            }
        }
        Ok(())
    }

    /// Lets commands run in `directory`, that of the recipe's file.
    pub(crate) fn in_directory(self, directory: &Path) -> Self {
        let moved = |command: &Arc<Command>| Arc::new(Command::new(command.observer.clone(), directory));
        Observers { commands: self.commands.iter().map(moved).collect(), ..self }
    }

    fn names(&self) -> impl Iterator<Item = &str> {
        self.commands.iter().map(|command| command.observer.name.as_str()).chain(self.registered.iter().map(|entry| &*entry.name))
    }

    /// The observer that `method` names: one of these, or of [`OBSERVERS`].
    ///
    /// # Errors
    ///
    /// [`Error::Usage`] if there is no such observer, if it takes no number, or if the number is out of its range.
    pub fn choose(&self, method: &Method) -> Result<ObserverChoice> {
        let command = self.places.get(&method.name).map(|place| &self.commands[*place]);
        let registered = self.registered.iter().find(|entry| *entry.name == method.name);
        match (command, registered, method.value) {
            (None, None, _) if OBSERVERS.iter().any(|entry| entry.name == method.name) => ObserverChoice::new(method),
            (None, None, _) => ObserverChoice::among(method, &self.names().collect::<Vec<_>>()),
            (_, _, Some(value)) => Err(Error::Usage(format!("observer {}: expected no number, found {value}", show_name(&method.name)))),
            (Some(command), _, None) => Ok(ObserverChoice::of_command(command.clone(), self.may_run)),
            (None, Some(registered), None) => Ok(ObserverChoice::of_registered(registered.clone())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrong_tables_are_refused() {
        let cases = [
            ("name = 'x'\ncommand = []", "program"),
            ("name = 'x'\ncommand = ['']", "program"),
            ("name = 'x'\ncommand = ['a\\u0000']", ""),
            ("name = 'x'", "command"),
            ("command = ['x']", "name"),
            ("name = ''\ncommand = ['x']", "name"),
            ("name = 'x:1'\ncommand = ['x']", "hyphens"),
            ("name = 'my_observer'\ncommand = ['x']", "hyphens"),
            ("name = '3x'\ncommand = ['x']", "hyphens"),
            ("name = 'mse'\ncommand = ['x']", "observer of qtool"),
            ("name = 'x'\ncommand = ['x']\n[[observer]]\nname = 'x'\ncommand = ['y']", "twice"),
            ("name = 'x'\ncommand = ['x']\ntimeout = 0", "timeout"),
            ("name = 'x'\ncommand = ['x']\ntimeout = nan", "timeout"),
            ("name = 'x'\ncommand = ['x']\ntimeout = 1e9", "timeout"),
            ("name = 'x'\ncommand = ['x']\ninput = 'csv'", "csv"),
            ("name = 'x'\ncommand = ['x']\ncomand = 1", "comand"),
            ("name = 'x'\ncommand = 'x'", "string"),
        ];
        #[derive(Debug, Deserialize)]
        struct Table {
            #[expect(dead_code, reason = "it is not read if it cannot be")]
            observer: Observers,
        }
        for (text, expected) in cases {
            let error = toml::from_str::<Table>(&format!("[[observer]]\n{}", text.replace('\'', "\""))).expect_err(text);
            assert!(error.to_string().contains(expected), "{text}: {error}");
        }
    }

    #[test]
    fn observers_are_found_by_name_among_those_of_qtool() {
        let text = "name = \"mine\"\ncommand = [\"./mine\", \"-x\"]";
        let observer: CustomObserver = toml::from_str(text).unwrap();
        assert_eq!((observer.input, observer.timeout), (ValueFormat::Npy, 60.0));
        assert_eq!(toml::to_string(&observer).unwrap().trim(), "command = [\"./mine\", \"-x\"]\nname = \"mine\"");
        let observers = Observers::try_from(vec![observer]).unwrap();
        assert_eq!(observers.choose(&Method::new("mine")).unwrap().method(), Method::new("mine"));
        assert_eq!(observers.choose(&Method::new("mse")).unwrap().method(), Method::new("mse"));
        let unknown = observers.choose(&Method::new("mien")).err().unwrap().to_string();
        assert!(unknown.contains("mine") && unknown.contains("min-max"), "{unknown}");
        assert!(observers.choose(&Method { name: "mine".into(), value: Some(3.0) }).is_err());
    }
}
