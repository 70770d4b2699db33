//! An output of one's own, a C header for a microcontroller, made of what a run wrote:
//! `cargo run --example custom_output MODEL.safetensors > weights.h`.

use qtool::formats::{self, ReadOptions};
use qtool::outputs::document::{Document, Values};
use qtool::{Prepared, Request, Silent};
use std::fmt::Write;
use std::path::Path;

/// Quantizes `model` to int8, one scale a tensor, and gives its weights as C: flat arrays, row-major, value = code × scale.
pub(crate) fn c_header(model: &Path) -> qtool::Result<String> {
    let mut request = Request::new(model);
    request.recipe.settings.granularity = "per-tensor".parse()?;
    let report = Prepared::new(request)?.run(&Silent)?;
    let sidecar = Document::read(&report.sidecar)?;
    let weights = formats::open(&report.output, &ReadOptions::default())?;
    let mut header = String::from("#include <stdint.h>\n");
    for (index, tensor) in weights.tensors().iter().enumerate() {
        let Some(record) = sidecar.tensors.get(&tensor.info.name) else { continue };
        let Values::Inline(scales) = &record.scale else { continue };
        let name: String = tensor.info.name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
        let codes: Vec<String> = weights.tensor_bytes(index).iter().map(|code| (*code as i8).to_string()).collect();
        let _ = writeln!(header, "static const float {name}_scale = {:e}f;", scales[0]);
        let _ = writeln!(header, "static const int8_t {name}[{}] = {{{}}};", codes.len(), codes.join(","));
    }
    Ok(header)
}

fn main() -> qtool::Result<()> {
    for model in std::env::args_os().skip(1) {
        print!("{}", c_header(Path::new(&model))?);
    }
    Ok(())
}
