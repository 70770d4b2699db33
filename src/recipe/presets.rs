//! Recipes by name: one file each in `presets/`, which `qtool recipe show NAME` prints.

use super::{Recipe, read};
use crate::error::{Error, Result};
use crate::method::{look_up, meant};
use std::path::Path;

/// A row of [`PRESETS`].
pub struct Preset {
    /// Name on the command line.
    pub name: &'static str,
    /// The recipe in TOML; its first line, a comment, says what it is.
    pub text: &'static str,
    /// Whether it is a scheme of serving stacks, which `--scheme` writes in the form of compressed-tensors.
    pub is_scheme: bool,
}

/// The row of the file `presets/NAME.toml`.
macro_rules! preset {
    ($name:literal, scheme) => {
        Preset { name: $name, text: include_str!(concat!("presets/", $name, ".toml")), is_scheme: true }
    };
    ($name:literal) => {
        Preset { name: $name, text: include_str!(concat!("presets/", $name, ".toml")), is_scheme: false }
    };
}

/// Every preset.
pub const PRESETS: &[Preset] = &[
    preset!("int8"),
    preset!("ort-static"),
    preset!("tensorrt"),
    preset!("torch-fbgemm"),
    preset!("torch-qnnpack"),
    preset!("w4a16", scheme),
    preset!("w4a16-asym", scheme),
    preset!("w8a16", scheme),
    preset!("w8a16-group", scheme),
    preset!("w8a8", scheme),
    preset!("w8a8-static", scheme),
    preset!("w8a8-static-asym", scheme),
];

/// The JSON schema of recipes.
pub const SCHEMA: &str = include_str!("../../docs/recipe.schema.json");

impl Preset {
    /// The form of output that schemes are for.
    pub const SCHEME_FORM: &'static str = "compressed-tensors";

    /// What it is, in a few words.
    pub fn summary(&self) -> &'static str {
        self.text.lines().next().unwrap_or_default().trim_start_matches("# ")
    }

    /// The recipe.
    pub fn recipe(&self) -> Recipe {
        read::parse(Path::new(self.name), self.text, true).unwrap_or_else(|e| panic!("preset: {e}"))
    }

    /// Sets what a scheme says in `recipe`, and leaves the rest of it.
    pub fn apply_scheme(&self, recipe: &mut Recipe) {
        let scheme = self.recipe();
        recipe.mode = scheme.mode;
        recipe.settings.weights = scheme.settings.weights;
        recipe.settings.granularity = scheme.settings.granularity;
        recipe.settings.symmetric = scheme.settings.symmetric;
        recipe.activations.symmetric = scheme.activations.symmetric;
    }

    /// The scheme of that name.
    ///
    /// # Errors
    ///
    /// [`Error::Usage`] if there is none.
    pub fn scheme(name: &str) -> Result<&'static Preset> {
        let schemes: Vec<&Preset> = PRESETS.iter().filter(|preset| preset.is_scheme).collect();
        look_up("--scheme", &schemes, |preset| preset.name, name).copied()
    }
}

/// The preset of that name.
pub(super) fn find(name: &Path) -> Option<&'static Preset> {
    PRESETS.iter().find(|preset| name == Path::new(preset.name))
}

/// An error that there is no file `name`, with the preset that was likely meant.
pub(super) fn with_suggestion(error: Error, name: &Path) -> Error {
    let is_missing = matches!(&error, Error::Io { source, .. } if source.kind() == std::io::ErrorKind::NotFound);
    let word = name.to_str().filter(|word| is_missing && !word.contains(['/', '.']));
    match word.map(|word| meant(word, PRESETS.iter().map(|preset| preset.name))) {
        Some(Some(preset)) => error.with_hint(format!("did you mean the preset {preset:?}?")),
        Some(None) => error.with_hint("`qtool recipe list` names the presets"),
        None => error,
    }
}
