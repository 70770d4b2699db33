//! Presets by the names that serving stacks use: `w8a8` is eight bits for weights and activations. One row a preset.

use crate::error::Error;
use crate::method::look_up;
use crate::quant::scheme::{CodeType, Granularity};
use crate::recipe::{Mode, Recipe};

/// A row of [`SCHEMES`].
pub struct Scheme {
    /// Name on the command line.
    pub name: &'static str,
    /// What it is, in a few words.
    pub summary: &'static str,
    mode: Mode,
    weights: CodeType,
    granularity: Granularity,
    symmetric: bool,
    /// Whether zero points of activations that are known before are in the middle of the codes.
    symmetric_activations: bool,
}

/// Elements of a group, as in the presets of compressed-tensors.
const GROUP: Granularity = Granularity::PerGroup(128);

/// Every preset.
pub const SCHEMES: &[Scheme] = &[
    Scheme {
        name: "w8a8",
        summary: "int8 weights per channel, int8 activations per token while the model runs",
        mode: Mode::Dynamic,
        weights: CodeType::Int8,
        granularity: Granularity::PerChannel,
        symmetric: true,
        symmetric_activations: true,
    },
    Scheme {
        name: "w8a8-static",
        summary: "int8 weights per channel, int8 activations with one scale a layer, from samples",
        mode: Mode::Static,
        weights: CodeType::Int8,
        granularity: Granularity::PerChannel,
        symmetric: true,
        symmetric_activations: true,
    },
    Scheme {
        name: "w8a8-static-asym",
        summary: "as w8a8-static, with zero points of activations",
        mode: Mode::Static,
        weights: CodeType::Int8,
        granularity: Granularity::PerChannel,
        symmetric: true,
        symmetric_activations: false,
    },
    Scheme {
        name: "w8a16",
        summary: "int8 weights per channel, float activations",
        mode: Mode::WeightOnly,
        weights: CodeType::Int8,
        granularity: Granularity::PerChannel,
        symmetric: true,
        symmetric_activations: true,
    },
    Scheme {
        name: "w8a16-group",
        summary: "int8 weights in groups of 128, float activations",
        mode: Mode::WeightOnly,
        weights: CodeType::Int8,
        granularity: GROUP,
        symmetric: true,
        symmetric_activations: true,
    },
    Scheme {
        name: "w4a16",
        summary: "int4 weights in groups of 128, float activations",
        mode: Mode::WeightOnly,
        weights: CodeType::Int4,
        granularity: GROUP,
        symmetric: true,
        symmetric_activations: true,
    },
    Scheme {
        name: "w4a16-asym",
        summary: "int4 weights with zero points in groups of 128, float activations",
        mode: Mode::WeightOnly,
        weights: CodeType::Int4,
        granularity: GROUP,
        symmetric: false,
        symmetric_activations: true,
    },
];

impl Scheme {
    /// The form of output that presets are for.
    pub const FORM: &'static str = "compressed-tensors";

    /// Sets what the preset says; options that are given besides win.
    pub fn apply(&self, recipe: &mut Recipe) {
        recipe.mode = self.mode;
        recipe.settings.weights = self.weights;
        recipe.settings.granularity = self.granularity;
        recipe.settings.symmetric = self.symmetric;
        recipe.activations.symmetric = self.symmetric_activations;
    }
}

impl std::str::FromStr for &'static Scheme {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self, Error> {
        look_up("--scheme", SCHEMES, |scheme| scheme.name, name)
    }
}
