//! `qtool recipe`.

use super::{Done, options, print};
use clap::{Args, Subcommand};
use qtool::pipeline::check::check_recipe;
use qtool::recipe::Recipe;
use qtool::recipe::presets::{PRESETS, SCHEMA};
use qtool::report::terminal;
use serde_json::json;
use std::path::{Path, PathBuf};

/// List, show and check recipes: what quantize is told by --recipe
#[derive(Args)]
pub(super) struct Arguments {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// List the presets
    List {
        #[command(flatten)]
        print: options::Output,
    },
    /// Print a preset, or the recipe of a file or a sidecar with everything that holds by default
    Show {
        /// A preset, a file in TOML or JSON, or a sidecar
        #[arg(value_name = "NAME|FILE")]
        recipe: PathBuf,
        /// Print it in JSON, with everything that holds by default
        #[arg(long)]
        json: bool,
    },
    /// Check a recipe, and with a model that every rule is about some tensor of it
    Check {
        /// A preset, a file in TOML or JSON, or a sidecar
        #[arg(value_name = "NAME|FILE")]
        recipe: PathBuf,
        /// A .safetensors file, a directory in Hugging Face layout, or an .onnx file
        model: Option<PathBuf>,
        #[command(flatten)]
        read: options::Read,
        #[command(flatten)]
        print: options::Output,
    },
    /// Print the JSON schema of recipes
    Schema,
}

pub(super) fn run(arguments: &Arguments) -> Done {
    match &arguments.action {
        Action::List { print } => {
            let list: Vec<_> = PRESETS.iter().map(|preset| json!({"name": preset.name, "summary": preset.summary()})).collect();
            print.show(&list, terminal::presets)
        }
        Action::Show { recipe, json } => show(recipe, *json),
        Action::Check { recipe, model, read, print } => {
            let checked = Recipe::named(recipe)?;
            let rules = model.as_deref().map(|model| check_recipe(model, &checked, &read.options())).transpose()?;
            let found = json!({"recipe": recipe.display().to_string(), "rules": rules});
            print.show(&found, || terminal::recipe_check(recipe, checked.rules.len(), rules.as_deref()))
        }
        Action::Schema => print::result(SCHEMA),
    }
}

fn show(name: &Path, as_json: bool) -> Done {
    let preset = PRESETS.iter().find(|preset| Path::new(preset.name) == name);
    match preset {
        Some(preset) if !as_json => print::result(preset.text),
        _ => print::result(&Recipe::named(name)?.to_text(Path::new(if as_json { "recipe.json" } else { "recipe.toml" }))?),
    }
}
