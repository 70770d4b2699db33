//! A model directory in Hugging Face layout: `model.safetensors`, or shards named by `model.safetensors.index.json`.
//!
//! The index is `{"metadata": {"total_size": N}, "weight_map": {"TENSOR": "SHARD FILE"}}`. `total_size` is wrong often
//! enough in files that people share that it is not checked. Everything else is: shard names are bare file names, every
//! tensor of a shard is in the index and the other way round, and no file lies outside the directory (the blob store
//! of the Hugging Face cache counts as inside).

use super::mmap::{Identity, MappedFile};
use super::{ReadOptions, parse_object, safetensors, shorten};
use crate::error::{Error, Result, list_names, show_name};
use crate::limits::raised_by;
use crate::model::{Layout, Model};
use crate::outputs::document::{DIRECTORY_SIDECAR, Document};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};

/// The file of a model that is not sharded.
pub(crate) const SINGLE: &str = "model.safetensors";
/// The index of a sharded model.
pub(crate) const INDEX: &str = "model.safetensors.index.json";

/// Weights of the same model in other formats: not carried over, or the output would hold the float model again.
const OTHER_WEIGHTS: &[(&str, &str)] =
    &[("pytorch_model", ".bin"), ("pytorch_model", ".bin.index.json"), ("tf_model", ".h5"), ("flax_model", ".msgpack")];

/// Longest file name that is tried, in bytes.
const MAX_FILE_NAME: usize = 255;

pub(super) fn open(dir: &Path, options: &ReadOptions) -> Result<Model> {
    let (single, index) = (dir.join(SINGLE), dir.join(INDEX));
    let exists = |path: &Path| path.symlink_metadata().is_ok();
    match (exists(&single), exists(&index)) {
        (false, false) => Err(no_model(dir)),
        (true, false) => {
            let file = MappedFile::open(&contained(dir, SINGLE, options)?)?;
            let read = safetensors::read_file(file, options)?;
            Ok(Model::new(dir.to_owned(), Layout::Directory { index: None }, vec![read]).with_companions(companions(dir, &[SINGLE])?))
        }
        (with_single, true) => {
            let weight_map = read_index(&contained(dir, INDEX, options)?, options)?;
            let shards: BTreeSet<&str> = weight_map.values().map(String::as_str).collect();
            if with_single && !shards.contains(SINGLE) {
                let message = format!("{}: ambiguous: expected one model, found both {SINGLE} and {INDEX}", crate::error::show_path(dir));
                return Err(Error::Usage(message).with_hint(format!("name the file: {}", crate::error::show_path(&single))));
            }
            open_shards(dir, &index, &weight_map, &shards, options)
        }
    }
}

fn open_shards(
    dir: &Path,
    index: &Path,
    weight_map: &BTreeMap<String, String>,
    shards: &BTreeSet<&str>,
    options: &ReadOptions,
) -> Result<Model> {
    for shard in shards {
        check_bare_name(index, shard)?;
    }
    let mut files = Vec::with_capacity(shards.len());
    let mut home: HashMap<String, &str> = HashMap::with_capacity(weight_map.len());
    for &shard in shards {
        let path = contained(dir, shard, options)?;
        let (source, tensors) = safetensors::read_file(MappedFile::open(&path)?, options)?;
        for tensor in &tensors {
            if let Some(other) = home.insert(tensor.name.clone(), shard) {
                return Err(Error::tensor(&path, &tensor.name, format!("name: expected in one shard, found in {} too", show_name(other))));
            }
            match weight_map.get(&tensor.name) {
                None => return Err(Error::tensor(&path, &tensor.name, format!("expected to be listed in {INDEX}, found no entry"))),
                Some(listed) if listed != shard => {
                    return Err(Error::tensor(
                        &path,
                        &tensor.name,
                        format!("expected in {} as {INDEX} says, found here", show_name(listed)),
                    ));
                }
                Some(_) => {}
            }
        }
        files.push((source, tensors));
    }
    if let Some((name, shard)) = weight_map.iter().find(|(name, _)| !home.contains_key(name.as_str())) {
        return Err(Error::tensor(&dir.join(shard), name, format!("expected as {INDEX} says, found no such tensor in the shard")));
    }
    let names: Vec<&str> = shards.iter().copied().chain([INDEX]).collect();
    Ok(Model::new(dir.to_owned(), Layout::Directory { index: Some(INDEX) }, files).with_companions(companions(dir, &names)?))
}

fn read_index(path: &Path, options: &ReadOptions) -> Result<BTreeMap<String, String>> {
    let file = MappedFile::open(path)?;
    let malformed = |message: String| Error::malformed(path, format!("index: {message}"));
    if file.bytes().len() as u64 > options.max_header_bytes {
        let found = file.bytes().len() as u64;
        let error = Error::Limit { file: path.to_owned(), what: "bytes of the index".into(), limit: options.max_header_bytes, found };
        return Err(raised_by(error, "header-bytes"));
    }
    let text = std::str::from_utf8(file.bytes()).map_err(|e| malformed(format!("expected UTF-8, found {e}")))?;
    let members = parse_object(text).map_err(|e| malformed(format!("expected a JSON object, found {e}")))?;
    let Some((_, value)) = members.iter().find(|(key, _)| key == "weight_map") else {
        return Err(malformed("expected the key weight_map, found none".into()));
    };
    let entries = parse_object(value.get()).map_err(|e| malformed(format!("weight_map: expected an object of file names, found {e}")))?;
    if entries.is_empty() {
        return Err(malformed("weight_map: expected at least one tensor, found none".into()));
    }
    let mut weight_map = BTreeMap::new();
    for (name, shard) in entries {
        let shard: String = serde_json::from_str(shard.get())
            .map_err(|e| malformed(shorten(&format!("tensor {}: expected a file name, found {e}", show_name(&name)))))?;
        weight_map.insert(name.into_owned(), shard);
    }
    let shards = weight_map.values().collect::<BTreeSet<_>>().len() as u64;
    if shards > options.max_shards {
        let error = Error::Limit { file: path.to_owned(), what: "shards".into(), limit: options.max_shards, found: shards };
        return Err(raised_by(error, "shards"));
    }
    Ok(weight_map)
}

/// Hugging Face indexes hold bare file names; anything else could lead out of the directory.
fn check_bare_name(index: &Path, shard: &str) -> Result<()> {
    let bare = !shard.is_empty() && shard != "." && shard != ".." && !shard.contains(['/', '\\', '\0']) && shard.len() <= MAX_FILE_NAME;
    let bare = bare && ![INDEX, DIRECTORY_SIDECAR].contains(&shard);
    match bare {
        true => Ok(()),
        false => Err(Error::malformed(index, format!("index: shard: expected a bare file name, found {}", show_name(shard)))),
    }
}

/// `dir/name`, if following links does not lead out of `dir`, or may.
pub(crate) fn contained(dir: &Path, name: impl AsRef<Path>, options: &ReadOptions) -> Result<PathBuf> {
    beside(dir, name, options.follow_symlinks)
}

/// As [`contained`], for what is only read beside a model.
pub(crate) fn beside(dir: &Path, name: impl AsRef<Path>, follows_links: bool) -> Result<PathBuf> {
    let path = dir.join(name);
    if follows_links {
        return Ok(path);
    }
    let dir = if dir.as_os_str().is_empty() { Path::new(".") } else { dir };
    let real = path.canonicalize().map_err(|e| Error::io(&path, "open", e))?;
    if is_inside(dir, &real)? {
        return Ok(path);
    }
    let found = format!("symbolic link: expected a target within the directory, found {}", crate::error::show_path(&real));
    Err(Error::malformed(&path, found).with_hint("pass --follow-symlinks if you trust where it leads"))
}

/// Whether `real`, which links have been followed to, lies in `dir` or where the Hugging Face cache keeps what `dir` holds.
pub(crate) fn is_inside(dir: &Path, real: &Path) -> Result<bool> {
    let root = dir.canonicalize().map_err(|e| Error::io(dir, "open", e))?;
    // There, `REPOSITORY/snapshots/REVISION/[DIRECTORY/]FILE` links to `REPOSITORY/blobs/HASH`.
    let snapshots = root.ancestors().skip(1).find(|ancestor| ancestor.ends_with("snapshots"));
    let blobs = snapshots.and_then(Path::parent).map(|repository| repository.join("blobs"));
    Ok(real.starts_with(&root) || blobs.is_some_and(|blobs| real.starts_with(blobs)))
}

/// Most names that a message lists.
const LISTED: usize = 3;

fn no_model(dir: &Path) -> Error {
    let mut names: Vec<String> =
        std::fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    let found = if names.is_empty() { "an empty directory".to_owned() } else { format!("only {}", list_names(names, LISTED)) };
    Error::malformed(dir, format!("model: expected {SINGLE} or {INDEX}, found {found}"))
}

/// Files beside the weights, relative to the model's directory, sorted.
#[derive(Default)]
pub(crate) struct Companions {
    /// Configuration, tokenizer, licence: what goes with the model whatever its weights.
    pub carried: Vec<PathBuf>,
    /// What these were like, in the same order.
    pub identities: Vec<Identity>,
    /// Hidden files, the same weights in other formats, links that lead out of the directory, what is no file, names that
    /// are not UTF-8, earlier outputs.
    pub left: Vec<PathBuf>,
}

/// Whether a directory is an output of this program.
fn is_output(dir: &Path) -> bool {
    beside(dir, DIRECTORY_SIDECAR, false).is_ok_and(|sidecar| Document::recognizes(&sidecar))
}

fn companions(dir: &Path, weights: &[&str]) -> Result<Companions> {
    let (mut found, mut carried) = (Companions::default(), Vec::new());
    let mut pending = vec![PathBuf::new()];
    while let Some(relative) = pending.pop() {
        let here = dir.join(&relative);
        let entries = std::fs::read_dir(&here).map_err(|e| Error::io(&here, "list", e))?;
        for entry in entries {
            let name = entry.map_err(|e| Error::io(&here, "list", e))?.file_name();
            let (path, text) = (relative.join(&name), name.to_string_lossy());
            let is_top = relative.as_os_str().is_empty();
            if is_top && weights.contains(&&*text) {
                continue;
            }
            let full = dir.join(&path);
            let is_other_weights = is_top && OTHER_WEIGHTS.iter().any(|(a, b)| text.starts_with(a) && text.ends_with(b));
            let is_inside = full.canonicalize().is_ok_and(|real| is_inside(dir, &real).unwrap_or(false));
            if text.starts_with('.') || name.to_str().is_none() {
                found.left.push(path);
                continue;
            }
            match std::fs::metadata(&full) {
                Ok(metadata) if metadata.is_file() && is_inside && !is_other_weights => {
                    carried.push((path, Identity::of(&metadata)));
                }
                Ok(metadata) if metadata.is_dir() && !full.is_symlink() && !is_output(&full) => pending.push(path),
                _ => found.left.push(path),
            }
        }
    }
    carried.sort_by(|(a, _), (b, _)| a.cmp(b));
    (found.carried, found.identities) = carried.into_iter().unzip();
    found.left.sort();
    Ok(found)
}
