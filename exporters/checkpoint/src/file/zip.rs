//! The part of the ZIP format that PyTorch writes: stored records, located in place.
//!
//! A general reader hides what must be refused here (two records of one name, ranges that overlap, a local header
//! that contradicts the directory), and only the offsets are wanted. Layout: PKWARE's APPNOTE 6.3, sections 4.3 and 4.5.3.

use std::collections::BTreeMap;
use std::ops::Range;

const END: &[u8] = b"PK\x05\x06";
const END64_LOCATOR: &[u8] = b"PK\x06\x07";
const END64: &[u8] = b"PK\x06\x06";
const CENTRAL: &[u8] = b"PK\x01\x02";
const LOCAL: &[u8] = b"PK\x03\x04";

/// Why an archive is refused.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum ZipError {
    /// Something the tables promise lies behind the end of the file.
    Truncated(String),
    /// The tables contradict the format or each other.
    Malformed(String),
    /// A valid feature that PyTorch does not use.
    Unsupported(String),
}

fn malformed<T>(why: impl Into<String>) -> Result<T, ZipError> {
    Err(ZipError::Malformed(why.into()))
}

/// Little-endian reads that never go out of bounds.
#[derive(Clone, Copy)]
struct LittleEndian<'a>(&'a [u8]);

impl<'a> LittleEndian<'a> {
    fn get<const N: usize>(self, at: usize) -> Option<[u8; N]> {
        self.0.get(at..)?.first_chunk::<N>().copied()
    }
    fn u16(self, at: usize) -> Option<u16> {
        self.get(at).map(u16::from_le_bytes)
    }
    fn u32(self, at: usize) -> Option<u32> {
        self.get(at).map(u32::from_le_bytes)
    }
    fn u64(self, at: usize) -> Option<u64> {
        self.get(at).map(u64::from_le_bytes)
    }
    fn range(self, at: usize, len: usize) -> Option<&'a [u8]> {
        self.0.get(at..at.checked_add(len)?)
    }
    fn starts(self, at: usize, magic: &[u8]) -> bool {
        self.range(at, magic.len()) == Some(magic)
    }
}

struct Directory {
    start: usize,
    end: usize,
    entries: u64,
}

/// Name → byte range of every stored record. Directory entries are left out.
pub(crate) fn records(file: &[u8]) -> Result<BTreeMap<&str, Range<usize>>, ZipError> {
    let b = LittleEndian(file);
    let directory = find_directory(b)?;
    let mut records = BTreeMap::new();
    let mut occupied: Vec<Range<usize>> = Vec::new();
    let mut at = directory.start;
    for _ in 0..directory.entries {
        if at >= directory.end {
            return malformed("the directory holds fewer records than it says");
        }
        let (name, whole, data) = entry(b, &mut at, &directory)?;
        occupied.push(whole);
        if !name.ends_with('/') && records.insert(name, data).is_some() {
            return malformed(format!("two records are named `{name}`"));
        }
    }
    if at != directory.end {
        return malformed("the directory holds more records than it says");
    }
    occupied.sort_by_key(|r| (r.start, r.end));
    if occupied.windows(2).any(|w| w[0].end > w[1].start) {
        return malformed("two records overlap");
    }
    Ok(records)
}

/// Locates the central directory through the end record, and through the 64-bit one where that exists.
fn find_directory(b: LittleEndian<'_>) -> Result<Directory, ZipError> {
    let len = b.0.len();
    let newest = len.saturating_sub(22);
    let oldest = newest.saturating_sub(usize::from(u16::MAX));
    let end = (oldest..=newest)
        .rev()
        .find(|&at| b.starts(at, END) && b.u16(at + 20).is_some_and(|c| at + 22 + usize::from(c) == len))
        .ok_or_else(|| match bytes_behind(b) {
            Some(n) => ZipError::Malformed(format!("{n} bytes follow the archive's end")),
            None => ZipError::Truncated("the archive's directory is missing from its end".to_owned()),
        })?;
    let cut = || ZipError::Truncated("the archive's end record is cut off".to_owned());
    let small = (
        u64::from(b.u16(end + 4).ok_or_else(cut)?),
        u64::from(b.u16(end + 10).ok_or_else(cut)?),
        u64::from(b.u32(end + 12).ok_or_else(cut)?),
        u64::from(b.u32(end + 16).ok_or_else(cut)?),
    );
    let (disk, entries, size, start, stop) = match end.checked_sub(20) {
        Some(locator) if b.starts(locator, END64_LOCATOR) => {
            let at = b.u64(locator + 8).and_then(|v| usize::try_from(v).ok()).ok_or_else(cut)?;
            if !b.starts(at, END64) {
                return malformed("the 64-bit end record is not where its locator says");
            }
            let field = |o: usize| at.checked_add(o).and_then(|p| b.u64(p)).ok_or_else(cut);
            let disk = at.checked_add(16).and_then(|p| b.u32(p)).ok_or_else(cut)?;
            (u64::from(disk), field(32)?, field(40)?, field(48)?, at)
        }
        _ => (small.0, small.1, small.2, small.3, end),
    };
    if disk != 0 {
        return Err(ZipError::Unsupported("the archive is split over several files".to_owned()));
    }
    let range = usize::try_from(start).ok().zip(usize::try_from(size).ok());
    let Some((start, directory_end)) = range.and_then(|(s, n)| Some((s, s.checked_add(n)?))) else {
        return malformed("the directory's place does not fit an address");
    };
    if directory_end > stop {
        return Err(ZipError::Truncated("the archive's directory lies behind its end record".to_owned()));
    }
    Ok(Directory { start, end: directory_end, entries })
}

/// Bytes behind an archive that is whole: an end record lies before them, and the directory is where it says.
fn bytes_behind(b: LittleEndian<'_>) -> Option<usize> {
    /// How far from the end an end record is looked for.
    const FAR: usize = 64 << 20;
    let len = b.0.len();
    let newest = len.checked_sub(22)?;
    (newest.saturating_sub(FAR)..=newest).rev().filter(|&at| b.starts(at, END)).find_map(|at| {
        let end = at + 22 + usize::from(b.u16(at + 20)?);
        let start = match at.checked_sub(20) {
            Some(locator) if b.starts(locator, END64_LOCATOR) => {
                let record = usize::try_from(b.u64(locator + 8)?).ok()?;
                b.starts(record, END64).then(|| b.u64(record.checked_add(48)?))??
            }
            _ => u64::from(b.u32(at + 16)?),
        };
        let place = usize::try_from(start).ok().filter(|s| *s < at)?;
        (end < len && b.starts(place, CENTRAL)).then(|| len - end)
    })
}

/// Reads one directory entry and the local header it points to: its name, its whole range, its data range.
fn entry<'a>(
    b: LittleEndian<'a>,
    at: &mut usize,
    directory: &Directory,
) -> Result<(&'a str, Range<usize>, Range<usize>), ZipError> {
    let cut = || ZipError::Malformed("a directory entry is cut off".to_owned());
    let p = *at;
    if !b.starts(p, CENTRAL) {
        return malformed("a directory entry has no signature");
    }
    let (flags, method) = (b.u16(p + 8).ok_or_else(cut)?, b.u16(p + 10).ok_or_else(cut)?);
    let mut stored = u64::from(b.u32(p + 20).ok_or_else(cut)?);
    let mut size = u64::from(b.u32(p + 24).ok_or_else(cut)?);
    let name_len = usize::from(b.u16(p + 28).ok_or_else(cut)?);
    let extra_len = usize::from(b.u16(p + 30).ok_or_else(cut)?);
    let comment_len = usize::from(b.u16(p + 32).ok_or_else(cut)?);
    let mut offset = u64::from(b.u32(p + 42).ok_or_else(cut)?);
    let raw_name = b.range(p + 46, name_len).ok_or_else(cut)?;
    let extra = b.range(p + 46 + name_len, extra_len).ok_or_else(cut)?;
    *at = p + 46 + name_len + extra_len + comment_len;
    if *at > directory.end {
        return Err(cut());
    }
    let Ok(name) = std::str::from_utf8(raw_name) else {
        return malformed("a record's name is not UTF-8");
    };
    // Bit 0: encrypted; bit 6: strong encryption; bit 13: masked directory.
    if flags & 0b10_0000_0100_0001 != 0 {
        return Err(ZipError::Unsupported(format!("record `{name}` is encrypted")));
    }
    if method != 0 {
        return Err(ZipError::Unsupported(format!(
            "record `{name}` is compressed (method {method}); PyTorch stores its records uncompressed"
        )));
    }
    wide_fields(extra, [&mut size, &mut stored, &mut offset])?;
    if stored != size {
        return malformed(format!("record `{name}` is stored but has two sizes"));
    }
    let place = usize::try_from(offset).ok().zip(usize::try_from(size).ok());
    let Some((offset, size)) = place else {
        return malformed(format!("record `{name}` has a place that does not fit an address"));
    };
    if offset >= directory.start || !b.starts(offset, LOCAL) {
        return malformed(format!("record `{name}` has no header where the directory says"));
    }
    let local = |o: usize| b.u16(offset + o).ok_or_else(cut);
    let (local_flags, local_method) = (local(6)?, local(8)?);
    let (local_name, local_extra) = (usize::from(local(26)?), usize::from(local(28)?));
    if b.range(offset + 30, local_name) != Some(raw_name) || local_method != method || local_flags & 1 != 0 {
        return malformed(format!("the header of record `{name}` contradicts the directory"));
    }
    let start = offset + 30 + local_name + local_extra;
    match start.checked_add(size) {
        Some(end) if end <= directory.start => Ok((name, offset..end, start..end)),
        _ => Err(ZipError::Truncated(format!(
            "record `{name}` of {size} bytes ends behind the archive's data"
        ))),
    }
}

/// Replaces the fields that are saturated in the directory by those of the 64-bit extra field, in order.
fn wide_fields(extra: &[u8], fields: [&mut u64; 3]) -> Result<(), ZipError> {
    if fields.iter().all(|f| **f != u64::from(u32::MAX)) {
        return Ok(());
    }
    let b = LittleEndian(extra);
    let mut at = 0;
    while let (Some(tag), Some(len)) = (b.u16(at), b.u16(at + 2)) {
        let len = usize::from(len);
        if tag == 1 {
            let Some(body) = b.range(at + 4, len) else { break };
            let mut from = 0;
            for field in fields {
                if *field == u64::from(u32::MAX) {
                    let Some(wide) = LittleEndian(body).u64(from) else {
                        return malformed("a 64-bit extra field is cut off");
                    };
                    *field = wide;
                    from += 8;
                }
            }
            return Ok(());
        }
        at += 4 + len;
    }
    Ok(())
}
