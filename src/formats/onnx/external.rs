//! Values of constants that lie in other files, as
//! [the specification](https://github.com/onnx/onnx/blob/main/docs/ExternalData.md) describes: a location relative to the
//! model's directory, an offset and a length in bytes, and the SHA-1 of the whole file.
//!
//! A location is a path that a stranger chose. It is refused, before anything is opened, unless it stays below the model's
//! directory: no `..`, no absolute path, no link that leads out. The directory is the one that the model was named in, or
//! the one that it lies in where its name is a link; the blob store of the Hugging Face cache counts as inside. A hard
//! link is a file like any other: whoever can make one here can read it already.
//!
//! Keys that the specification does not know, such as ONNX Runtime's `prepacked`, are ignored.

use super::proto::{AttributeProto, GraphProto, ModelProto, NodeProto, Payload, TensorProto};
use super::tensor::EXTERNAL;
use crate::error::{Error, Result, show_name, show_path};
use crate::formats::ReadOptions;
use crate::formats::directory::is_inside;
use crate::formats::mmap::MappedFile;
use crate::limits::raised_by;
use bytes::Bytes;
use sha1::{Digest, Sha1};
use std::collections::HashMap;
use std::io::ErrorKind;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

/// Longest location, and longest part of it, in bytes: what Linux can open.
const MAX_LOCATION: usize = 4096;
const MAX_PART: usize = 255;

/// Replaces references to other files by the values themselves, which stay in those files' maps. Appends the files to
/// `files`, each once, and returns whether there were any.
///
/// # Errors
///
/// [`Error::Tensor`] for a reference that is malformed, leads out of the directory, or is not to a regular file that is
/// as long as it says and has the checksum; [`Error::Io`] for a file that is missing or cannot be read; [`Error::Limit`]
/// for too many files.
pub(super) fn resolve(model: &mut ModelProto, files: &mut Vec<Arc<MappedFile>>, options: &ReadOptions) -> Result<bool> {
    let path = files[0].path().to_owned();
    let directory = |path: &Path| path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new(".")).to_owned();
    let mut roots = vec![directory(&path)];
    roots.extend(path.is_symlink().then(|| path.canonicalize().ok()).flatten().map(|real| directory(&real)));
    let mut resolver = Resolver { path, roots, options, files, located: HashMap::new(), opened: HashMap::new() };
    if let Some(graph) = &mut model.graph {
        resolver.graph(graph)?;
    }
    model.functions.iter_mut().try_for_each(|function| resolver.nodes(&mut function.node))?;
    Ok(!resolver.located.is_empty())
}

/// A file that constants lie in.
struct DataFile {
    bytes: Bytes,
    /// SHA-1 of the whole file, once a constant has asked for it.
    digest: Option<String>,
}

struct Resolver<'a> {
    path: PathBuf,
    /// Directories that locations are relative to, in the order that they are tried.
    roots: Vec<PathBuf>,
    options: &'a ReadOptions,
    files: &'a mut Vec<Arc<MappedFile>>,
    /// Locations, and the real paths that they stand for.
    located: HashMap<String, PathBuf>,
    opened: HashMap<PathBuf, DataFile>,
}

impl Resolver<'_> {
    fn graph(&mut self, graph: &mut GraphProto) -> Result<()> {
        graph.initializer.iter_mut().try_for_each(|tensor| self.tensor(tensor, ""))?;
        self.nodes(&mut graph.node)
    }

    fn nodes(&mut self, nodes: &mut [NodeProto]) -> Result<()> {
        for node in nodes {
            let owner = node.output.first().unwrap_or(&node.name);
            node.attribute.iter_mut().try_for_each(|attribute| self.attribute(attribute, owner))?;
        }
        Ok(())
    }

    fn attribute(&mut self, attribute: &mut AttributeProto, owner: &str) -> Result<()> {
        attribute.t.as_deref_mut().into_iter().chain(&mut attribute.tensors).try_for_each(|tensor| self.tensor(tensor, owner))?;
        attribute.g.as_deref_mut().into_iter().chain(&mut attribute.graphs).try_for_each(|graph| self.graph(graph))
    }

    /// `owner` names a tensor without a name: the value that its node computes.
    fn tensor(&mut self, tensor: &mut TensorProto, owner: &str) -> Result<()> {
        if tensor.data_location != Some(EXTERNAL) {
            return Ok(());
        }
        let name = if tensor.name.is_empty() { owner } else { &tensor.name }.to_owned();
        let path = self.path.clone();
        let fault = |message: String| Error::tensor(&path, &name, format!("external data: {message}"));
        if let Some(field) = tensor.value_fields().first() {
            return Err(fault(format!("expected values in one place, found some in {field} too")));
        }
        let reference = Reference::of(tensor).map_err(fault)?;
        let file = self.file(&reference.location, &name)?;
        if let Some(expected) = &reference.checksum {
            let found = file.digest.get_or_insert_with(|| hex(&Sha1::digest(&file.bytes)));
            if !found.eq_ignore_ascii_case(expected) {
                let location = show_name(&reference.location);
                return Err(fault(format!("checksum: expected SHA-1 {} of {location}, found {found}", show_name(expected))));
            }
        }
        let values = reference.part_of(&file.bytes).map_err(fault)?;
        tensor.raw_data = Some(Payload::Bytes(values));
        tensor.external_data.clear();
        tensor.data_location = None;
        Ok(())
    }

    fn file(&mut self, location: &str, tensor: &str) -> Result<&mut DataFile> {
        if !self.located.contains_key(location) {
            // Locations rather than files, because finding a file is what takes time.
            let (limit, found) = (self.options.max_shards, self.located.len() as u64 + 1);
            if found > limit {
                let what = "locations of external data".into();
                return Err(raised_by(Error::Limit { file: self.path.clone(), what, limit, found }, "shards"));
            }
            let (path, real) = self.locate(location, tensor)?;
            if !self.opened.contains_key(&real) {
                let file = Arc::new(MappedFile::open(&path).map_err(|e| self.about(e, location, tensor))?);
                self.opened.insert(real.clone(), DataFile { bytes: file.to_bytes(), digest: None });
                self.files.push(file);
            }
            self.located.insert(location.to_owned(), real);
        }
        Ok(self.opened.get_mut(&self.located[location]).expect("every located file was opened"))
    }

    /// The path of a location, and the same without links.
    fn locate(&self, location: &str, tensor: &str) -> Result<(PathBuf, PathBuf)> {
        let fault = |message: String| Error::tensor(&self.path, tensor, format!("external data: location: {message}"));
        check_location(location).map_err(fault)?;
        let io = |path: &Path, e| self.about(Error::io(path, "open", e), location, tensor);
        for root in &self.roots {
            let path = root.join(location);
            // The directory first, so that nothing can be learned about files beyond a link.
            let parent = path.parent().unwrap_or(root);
            for place in [parent, &path] {
                let real = match place.canonicalize() {
                    Ok(real) => real,
                    Err(e) if e.kind() == ErrorKind::NotFound && !place.is_symlink() => break,
                    Err(e) if e.kind() == ErrorKind::NotFound => {
                        return Err(fault(format!("expected a file, found the link {}, which leads nowhere", show_path(place))));
                    }
                    Err(e) => return Err(io(place, e)),
                };
                let mut inside = self.options.follow_symlinks;
                for root in &self.roots {
                    inside = inside || is_inside(root, &real)?;
                }
                if !inside {
                    let message = format!("expected a file within the model's directory, found that {} leads out", show_name(location));
                    return Err(fault(message).with_hint("pass --follow-symlinks if you trust where it leads"));
                }
                if place == path {
                    return Ok((path.clone(), real));
                }
            }
        }
        Err(io(&self.roots[0].join(location), ErrorKind::NotFound.into()))
    }

    /// The same error, about this tensor of this model.
    fn about(&self, error: Error, location: &str, tensor: &str) -> Error {
        match error {
            Error::Malformed { message, .. } => {
                Error::tensor(&self.path, tensor, format!("external data: {}: {message}", show_name(location)))
            }
            other => other.with_hint(format!("{} keeps values of tensor {} there", show_path(&self.path), show_name(tensor))),
        }
    }
}

/// Where a tensor says that its values lie.
struct Reference {
    location: String,
    offset: u64,
    length: Option<u64>,
    checksum: Option<String>,
}

impl Reference {
    fn of(tensor: &TensorProto) -> Result<Self, String> {
        let value = |key: &str| -> Result<Option<&str>, String> {
            let mut entries = tensor.external_data.iter().filter(|entry| entry.key == key);
            let first = entries.next();
            if entries.next().is_some() {
                return Err(format!("{key}: expected at most one, found several"));
            }
            Ok(first.map(|entry| entry.value.as_str()))
        };
        let number = |key: &str| -> Result<Option<u64>, String> {
            let Some(text) = value(key)? else { return Ok(None) };
            // Digits only: `parse` alone would take a sign.
            let number = text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten();
            number.map(Some).ok_or_else(|| format!("{key}: expected a number of bytes, found {}", show_name(text)))
        };
        Ok(Reference {
            location: value("location")?.ok_or("location: expected one, found none")?.to_owned(),
            offset: number("offset")?.unwrap_or(0),
            length: number("length")?,
            checksum: value("checksum")?.map(str::to_owned),
        })
    }

    /// The part of the file that it means: without a length, all from the offset on.
    fn part_of(&self, file: &Bytes) -> Result<Bytes, String> {
        let size = file.len() as u64;
        if self.offset > size {
            return Err(format!("offset: expected at most the file's {size} bytes, found {}", self.offset));
        }
        let length = self.length.unwrap_or(size - self.offset);
        match self.offset.checked_add(length).filter(|end| *end <= size) {
            // Both are at most the length of a slice.
            Some(end) => Ok(file.slice(self.offset as usize..end as usize)),
            None => Err(format!("length: expected at most {} bytes from offset {}, found {length}", size - self.offset, self.offset)),
        }
    }
}

/// Whether a location can be trusted to stay below the directory that it is relative to, links aside.
fn check_location(location: &str) -> Result<(), String> {
    if location.is_empty() {
        return Err("expected a path, found none".into());
    }
    if location.len() > MAX_LOCATION || location.split('/').any(|part| part.len() > MAX_PART) {
        return Err(format!(
            "expected a path of at most {MAX_LOCATION} bytes and {MAX_PART} between slashes, found {} bytes",
            location.len()
        ));
    }
    let is_below = Path::new(location).components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
    if !is_below || location.contains(['\\', '\0']) || location.contains("://") {
        return Err(format!("expected a path relative to the model's directory and below it, found {}", show_name(location)));
    }
    Ok(())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::formats::onnx::proto::StringStringEntryProto;
    use std::fs;
    use std::os::unix::fs::symlink;

    /// A model of one constant, `[1, 2, 3, 4]` as bytes, that lies where the keys say.
    fn model(keys: &[(&str, &str)]) -> Vec<u8> {
        let entry =
            |(key, value): &(&str, &str)| StringStringEntryProto { key: (*key).into(), value: (*value).into(), ..Default::default() };
        let tensor = TensorProto {
            name: "w".into(),
            data_type: Some(super::super::tensor::UINT8),
            dims: vec![4],
            data_location: Some(EXTERNAL),
            external_data: keys.iter().map(entry).collect(),
            ..Default::default()
        };
        let graph = GraphProto { initializer: vec![tensor], ..Default::default() };
        let import = super::super::proto::OperatorSetIdProto { version: Some(21), ..Default::default() };
        let model = ModelProto { ir_version: Some(10), opset_import: vec![import], graph: Some(Box::new(graph)), ..Default::default() };
        model.to_bytes().unwrap()
    }

    fn values(path: &Path, options: &ReadOptions) -> Result<Vec<u8>> {
        let file = super::super::open(MappedFile::open(path)?, options)?;
        assert_eq!(file.files.len(), 2);
        assert!(file.has_external_data);
        Ok(file.proto.graph.unwrap().initializer[0].contents().unwrap().to_vec())
    }

    fn expect(result: Result<Vec<u8>>, expected: Result<&[u8], (u8, &str)>, case: &str) {
        match (result, expected) {
            (Ok(found), Ok(expected)) => assert_eq!(found, expected, "{case}"),
            (Err(found), Err((exit, message))) => {
                assert!(found.exit_code() == exit && found.to_string().contains(message), "{case}: {found}");
            }
            (found, expected) => panic!("{case}: expected {expected:?}, found {found:?}"),
        }
    }

    #[test]
    fn keys_say_which_part_of_which_file() {
        const SHA1: &str = "531685DA6D51198F814AB5F35B0201297FA49D74";
        let all: Result<&[u8], _> = Ok(&[1, 2, 3, 4]);
        type Case<'a> = (&'a [(&'a str, &'a str)], Result<&'a [u8], (u8, &'a str)>);
        let cases: &[Case<'_>] = &[
            (&[("location", "a/data"), ("offset", "2"), ("length", "4")], all),
            (&[("location", "./a//data"), ("offset", "2"), ("length", "4"), ("prepacked_0", "x")], all),
            (&[("location", "a/data"), ("offset", "3")], Ok(&[2, 3, 4, 5])),
            (&[("location", "onnx::data"), ("offset", "3")], Err((4, "onnx::data"))),
            (&[("location", "a/data"), ("offset", "2")], Err((1, "expected 4 bytes for uint8 [4], found 5"))),
            (&[("location", "a/data"), ("length", "3")], Err((1, "expected 4 bytes for uint8 [4], found 3"))),
            (&[("location", "a/data"), ("offset", "8")], Err((1, "offset: expected at most the file's 7 bytes, found 8"))),
            (&[("location", "a/data"), ("offset", "4"), ("length", "4")], Err((1, "at most 3 bytes from offset 4, found 4"))),
            (&[("location", "a/data"), ("offset", "+2")], Err((1, "offset: expected a number of bytes"))),
            (&[("location", "a/data"), ("offset", "")], Err((1, "offset: expected a number of bytes"))),
            (&[("location", "a/data"), ("offset", "1"), ("offset", "2")], Err((1, "offset: expected at most one"))),
            (&[("location", "a/data"), ("offset", "3"), ("checksum", "00")], Err((1, "checksum"))),
            (&[("location", "a/data"), ("offset", "3"), ("checksum", SHA1)], Ok(&[2, 3, 4, 5])),
            (&[("location", "a/missing")], Err((4, "a/missing"))),
            (&[("location", "missing/data")], Err((4, "missing/data"))),
            (&[("location", "a")], Err((1, "a directory"))),
            (&[("location", "a/..")], Err((1, "below"))),
            (&[("location", "a\0b")], Err((1, "below"))),
            (&[], Err((1, "location: expected one"))),
        ];
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("a")).unwrap();
        fs::write(dir.path().join("a/data"), [0, 0, 1, 2, 3, 4, 5]).unwrap();
        let path = dir.path().join("model.onnx");
        for (keys, expected) in cases {
            fs::write(&path, model(keys)).unwrap();
            let result = values(&path, &ReadOptions::default());
            expect(result, *expected, &format!("{keys:?}"));
        }
    }

    #[test]
    fn links_lead_no_further_than_the_model_and_its_store() {
        let data = [("location", "data")];
        let root = tempfile::tempdir().unwrap();
        let at = |name: &str| root.path().join(name);
        for dir in ["hub/snapshots/main", "hub/blobs", "real", "linked", "outside"] {
            fs::create_dir_all(at(dir)).unwrap();
        }
        fs::write(at("outside/data"), [9, 9, 9, 9]).unwrap();
        for (file, content) in [("hub/blobs/abc", &model(&data)[..]), ("hub/blobs/def", &[1, 2, 3, 4])] {
            fs::write(at(file), content).unwrap();
        }
        symlink("../../blobs/abc", at("hub/snapshots/main/model.onnx")).unwrap();
        symlink("../../blobs/def", at("hub/snapshots/main/data")).unwrap();
        fs::write(at("real/model.onnx"), model(&data)).unwrap();
        fs::write(at("real/data"), [5, 6, 7, 8]).unwrap();
        symlink(at("real/model.onnx"), at("linked/model.onnx")).unwrap();
        fs::write(at("outside/model.onnx"), model(&[("location", "d/data")])).unwrap();
        symlink(at("real"), at("outside/d")).unwrap();

        let strict = ReadOptions::default();
        let lenient = ReadOptions { follow_symlinks: true, ..strict };
        expect(values(&at("hub/snapshots/main/model.onnx"), &strict), Ok(&[1, 2, 3, 4]), "Hugging Face cache");
        expect(values(&at("linked/model.onnx"), &strict), Ok(&[5, 6, 7, 8]), "beside the model that the link means");
        symlink(at("real/data"), at("linked/data")).unwrap();
        expect(values(&at("linked/model.onnx"), &strict), Ok(&[5, 6, 7, 8]), "a link to there");
        expect(values(&at("outside/model.onnx"), &strict), Err((1, "leads out")), "a directory elsewhere");
        expect(values(&at("outside/model.onnx"), &lenient), Ok(&[5, 6, 7, 8]), "the same, trusted");
        fs::remove_file(at("real/data")).unwrap();
        symlink(at("outside/data"), at("real/data")).unwrap();
        expect(values(&at("real/model.onnx"), &strict), Err((1, "leads out")), "a file elsewhere");
        expect(values(&at("linked/model.onnx"), &strict), Err((1, "leads out")), "by way of a link");
        fs::remove_file(at("real/data")).unwrap();
        symlink("data", at("real/data")).unwrap();
        expect(values(&at("real/model.onnx"), &strict), Err((4, "open")), "a circle of links");
    }
}
