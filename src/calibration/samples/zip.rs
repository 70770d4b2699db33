//! ZIP archives as NumPy writes them: which members there are, and a reader of one.
//!
//! The [format](https://pkware.cachefly.net/webdocs/casestudies/APPNOTE.TXT) is read from its end: the end record (with
//! its ZIP64 form for large archives) leads to the central directory, whose entries lead to the members. Nothing of the
//! members' own headers is trusted but where their data begin.
//!
//! Members are stored or deflated. Left out: encryption, other compressions, archives in several parts, and what lies
//! before the archive, as in self-extracting ones.

use super::{Origin, SampleLimits};
use crate::error::{Error, Result};
use crate::limits::raised_by;
use flate2::Crc;
use flate2::bufread::DeflateDecoder;
use std::io::{self, Read};
use std::ops::Range;
use std::path::Path;

/// What the records begin with.
const LOCAL: u32 = 0x0403_4b50;
const CENTRAL: u32 = 0x0201_4b50;
const END: u32 = 0x0605_4b50;
const END64: u32 = 0x0606_4b50;
const END64_LOCATOR: u32 = 0x0706_4b50;

/// Bytes of the records without what varies.
const LOCAL_BYTES: usize = 30;
const CENTRAL_BYTES: usize = 46;
const END_BYTES: usize = 22;
const END64_BYTES: usize = 56;
const END64_LOCATOR_BYTES: usize = 20;

/// Longest comment, which is all that may follow the end record.
const MAX_COMMENT: usize = 0xffff;

/// Identifier of the extra field with 64-bit sizes.
const EXTRA_ZIP64: u16 = 1;

/// Flags of encrypted members: plain, strong, and with a masked header.
const ENCRYPTED: u16 = 1 | 1 << 6 | 1 << 13;

/// Names of compressions that some programs write.
const METHODS: &[(u16, &str)] = &[(9, "Deflate64"), (12, "bzip2"), (14, "LZMA"), (93, "Zstandard"), (95, "XZ")];

/// Whether a file begins with a member, or is an archive without any.
pub(super) fn recognizes(bytes: &[u8]) -> bool {
    bytes.starts_with(&LOCAL.to_le_bytes()) || bytes.starts_with(&END.to_le_bytes())
}

/// A member of an archive.
pub(super) struct Member {
    pub name: String,
    /// Where its data lie in the file.
    data: Range<usize>,
    is_deflated: bool,
    /// Bytes of its content.
    pub size: u64,
    crc: u32,
}

/// Every member, in the order of the central directory; names may occur twice.
///
/// # Errors
///
/// If the archive is malformed, has too many members, or one that is encrypted or compressed in an
/// unsupported way.
pub(super) fn read_members(path: &Path, bytes: &[u8], limits: &SampleLimits) -> Result<Vec<Member>> {
    let malformed = |message: String| Error::malformed(path, format!("ZIP archive: {message}"));
    let end = find_end(bytes).map_err(malformed)?;
    if end.members > limits.max_members {
        let what = "ZIP archive: limit of members".to_owned();
        let error = Error::Limit { file: path.to_owned(), what, limit: limits.max_members, found: end.members };
        return Err(raised_by(error, "npz-members"));
    }
    let directory = bytes.get(end.directory.clone()).ok_or_else(|| malformed(cut_off("central directory")))?;
    let mut rest = directory;
    let mut members = Vec::with_capacity((end.members as usize).min(directory.len() / CENTRAL_BYTES));
    for _ in 0..end.members {
        let entry = Entry::take(&mut rest).map_err(malformed)?;
        let before_directory = &bytes[..end.directory.start];
        members.push(entry.locate(path, before_directory)?);
    }
    if !rest.is_empty() {
        return Err(malformed(format!("expected {} members as its end says, found more", end.members)));
    }
    Ok(members)
}

fn cut_off(what: &str) -> String {
    format!("expected a {what} within the file, found one that is cut off")
}

/// The number at `at` of a record that has been checked to be long enough.
fn u16_at(record: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([record[at], record[at + 1]])
}

fn u32_at(record: &[u8], at: usize) -> u32 {
    u32::from(u16_at(record, at)) | u32::from(u16_at(record, at + 2)) << 16
}

fn u64_at(record: &[u8], at: usize) -> u64 {
    u64::from(u32_at(record, at)) | u64::from(u32_at(record, at + 4)) << 32
}

/// The record of `len` bytes at `at`, if it is there and begins with `signature`.
fn record(bytes: &[u8], at: usize, len: usize, signature: u32) -> Option<&[u8]> {
    bytes.get(at..at.checked_add(len)?).filter(|record| record.starts_with(&signature.to_le_bytes()))
}

/// What the end record says.
struct End {
    members: u64,
    directory: Range<usize>,
}

fn find_end(bytes: &[u8]) -> Result<End, String> {
    let last = bytes.len().checked_sub(END_BYTES).ok_or_else(|| format!("expected an end record, found {} bytes", bytes.len()))?;
    // Of records whose comment ends with the file, the last: a comment may contain what looks like another.
    let found = (last.saturating_sub(MAX_COMMENT)..=last).rev().find_map(|at| {
        let end = record(bytes, at, END_BYTES, END)?;
        (at + END_BYTES + usize::from(u16_at(end, 20)) == bytes.len()).then_some((at, end))
    });
    let (at, end) = found.ok_or("expected an end record, found none: the file is cut off or something follows it")?;
    let mut parts = [u64::from(u16_at(end, 4)), u64::from(u16_at(end, 6))];
    let [mut on_this, mut members] = [u64::from(u16_at(end, 8)), u64::from(u16_at(end, 10))];
    let [mut size, mut start] = [u64::from(u32_at(end, 12)), u64::from(u32_at(end, 16))];
    let mut limit = at;
    if let Some(locator) = at.checked_sub(END64_LOCATOR_BYTES).and_then(|at| record(bytes, at, END64_LOCATOR_BYTES, END64_LOCATOR)) {
        let at = usize::try_from(u64_at(locator, 8)).ok().filter(|end64| *end64 < at);
        let end64 = at.and_then(|at| record(bytes, at, END64_BYTES, END64));
        let (Some(at), Some(end64)) = (at, end64) else {
            return Err("expected a ZIP64 end record where its locator says, found none".into());
        };
        parts = [u64::from(u32_at(end64, 16)), u64::from(u32_at(end64, 20))];
        [on_this, members, size, start] = [24, 32, 40, 48].map(|field| u64_at(end64, field));
        limit = at;
    }
    if parts != [0, 0] || on_this != members {
        return Err("expected one file, found a part of an archive in several".into());
    }
    let stop = start.checked_add(size).filter(|stop| *stop <= limit as u64).ok_or_else(|| cut_off("central directory"))?;
    Ok(End { members, directory: start as usize..stop as usize })
}

/// An entry of the central directory.
struct Entry {
    name: String,
    flags: u16,
    method: u16,
    crc: u32,
    compressed: u64,
    size: u64,
    /// Where the member's own header begins.
    header: u64,
}

impl Entry {
    fn take(rest: &mut &[u8]) -> Result<Self, String> {
        let fixed = record(rest, 0, CENTRAL_BYTES, CENTRAL).ok_or("expected another entry of the central directory, found none")?;
        let [name, extra, comment] = [28, 30, 32].map(|at| usize::from(u16_at(fixed, at)));
        let variable = rest.get(CENTRAL_BYTES..CENTRAL_BYTES + name + extra + comment).ok_or_else(|| cut_off("directory entry"))?;
        let name_text = std::str::from_utf8(&variable[..name]).map_err(|e| format!("name: expected UTF-8, found {e}"))?;
        let mut entry = Entry {
            name: name_text.to_owned(),
            flags: u16_at(fixed, 8),
            method: u16_at(fixed, 10),
            crc: u32_at(fixed, 16),
            compressed: u64::from(u32_at(fixed, 20)),
            size: u64::from(u32_at(fixed, 24)),
            header: u64::from(u32_at(fixed, 42)),
        };
        entry.widen(&variable[name..name + extra])?;
        *rest = &rest[CENTRAL_BYTES + name + extra + comment..];
        Ok(entry)
    }

    /// Numbers that are all ones are in the ZIP64 field instead, in this order.
    fn widen(&mut self, mut extra: &[u8]) -> Result<(), String> {
        let narrow = u64::from(u32::MAX);
        let mut wide: &[u8] = &[];
        while let Some((head, rest)) = extra.split_at_checked(4) {
            let (content, rest) = rest.split_at_checked(usize::from(u16_at(head, 2))).ok_or_else(|| cut_off("extra field"))?;
            if u16_at(head, 0) == EXTRA_ZIP64 {
                wide = content;
            }
            extra = rest;
        }
        for number in [&mut self.size, &mut self.compressed, &mut self.header] {
            if *number == narrow {
                let (head, rest) = wide.split_at_checked(8).ok_or("expected 64-bit sizes in the extra field, found none")?;
                (*number, wide) = (u64_at(head, 0), rest);
            }
        }
        Ok(())
    }

    /// Finds the data, which lie in `bytes`.
    fn locate(self, path: &Path, bytes: &[u8]) -> Result<Member> {
        let fail = |message: String| Err(Error::tensor(path, &self.name, message));
        if self.flags & ENCRYPTED != 0 {
            return fail("member: expected plain data, found encrypted data".into());
        }
        let is_deflated = match self.method {
            0 => false,
            8 => true,
            other => {
                let name = METHODS.iter().find(|(method, _)| *method == other).map_or("another method", |(_, name)| name);
                let error = format!("compression: expected a stored or deflated member, found {name} ({other})");
                let error = Error::tensor(path, &self.name, error);
                return Err(error.with_hint("write it with numpy.savez or numpy.savez_compressed"));
            }
        };
        let range = usize::try_from(self.header).ok().and_then(|header| {
            let local = record(bytes, header, LOCAL_BYTES, LOCAL)?;
            let name = header + LOCAL_BYTES;
            let [name_bytes, extra_bytes] = [26, 28].map(|at| usize::from(u16_at(local, at)));
            let is_same = bytes.get(name..name + name_bytes)? == self.name.as_bytes();
            let start = name + name_bytes + extra_bytes;
            let end = start.checked_add(usize::try_from(self.compressed).ok()?)?;
            (is_same && end <= bytes.len()).then_some(start..end)
        });
        let Some(data) = range else {
            return fail("member: expected its header and data where the central directory says, found others".into());
        };
        if !is_deflated && self.compressed != self.size {
            return fail(format!("size: expected as many bytes as are stored, {}, found {}", self.compressed, self.size));
        }
        Ok(Member { name: self.name, data, is_deflated, size: self.size, crc: self.crc })
    }
}

impl Member {
    /// A reader of the content, which ends after as many bytes as the archive says at the latest.
    pub(super) fn reader<'a>(&self, archive: &'a [u8]) -> MemberReader<'a> {
        let data = &archive[self.data.clone()];
        let source = if self.is_deflated { Source::Deflated(Box::new(DeflateDecoder::new(data))) } else { Source::Stored(data) };
        MemberReader { source, left: self.size, crc: Crc::new(), expected_crc: self.crc }
    }
}

enum Source<'a> {
    Stored(&'a [u8]),
    Deflated(Box<DeflateDecoder<&'a [u8]>>),
}

impl Read for Source<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        match self {
            Source::Stored(bytes) => bytes.read(out),
            Source::Deflated(decoder) => decoder.read(out),
        }
    }
}

/// Reads the content of a member.
pub(super) struct MemberReader<'a> {
    source: Source<'a>,
    left: u64,
    crc: Crc,
    expected_crc: u32,
}

impl Read for MemberReader<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let len = out.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let count = self.source.read(&mut out[..len])?;
        self.left -= count as u64;
        self.crc.update(&out[..count]);
        Ok(count)
    }
}

impl MemberReader<'_> {
    /// After the content has been read: it must have ended, and be what the checksum was computed of.
    pub(super) fn finish(mut self, origin: &Origin<'_>) -> Result<()> {
        let fail = |message: String| Err(origin.error(message));
        match self.source.read(&mut [0]) {
            Ok(0) if self.left == 0 => {}
            Ok(0) => return fail(format!("member: expected {} more bytes, found its end", self.left)),
            Ok(_) => return fail("member: expected its end after as many bytes as the archive says, found more".into()),
            Err(e) => return fail(format!("member: expected its end, found {e}")),
        }
        match self.crc.sum() {
            sum if sum == self.expected_crc => Ok(()),
            sum => fail(format!("CRC: expected {:08x}, found {sum:08x}: the file is damaged", self.expected_crc)),
        }
    }
}
