//! `[[fake_quantizer]]`: which weight a fake quantizer of an exported graph is for, as its name does not say.

use super::place::Place;
use crate::error::Error;
use serde::{Deserialize, Serialize};

/// What a numbered fake quantizer in the state dict of an exported graph (PT2E) quantizes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FakeQuantizer {
    /// The module of batch normalization that the graph multiplies the weight by first, if it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub batch_norm: Option<String>,
    /// Its name, such as `activation_post_process_4`.
    pub name: String,
    /// The weight's name.
    pub weight: String,
    /// Where it is in the file it was read from.
    #[serde(skip)]
    pub(crate) place: Option<Place>,
}

impl FakeQuantizer {
    /// The error that something of it is wrong.
    pub(crate) fn error(&self, message: &str) -> Error {
        let message = format!("fake_quantizer {}: {message}", crate::error::show_name(&self.name));
        self.place.as_ref().map_or_else(|| Error::Usage(message.clone()), |place| place.error(&message))
    }
}
