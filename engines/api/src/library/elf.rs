//! A shared library that is cut short is mapped by the system loader and then ends the process (`SIGBUS`) when the
//! missing part is touched. This compares what an ELF file says about itself with what is there.

use std::io::{self, Read, Seek, SeekFrom};

use camino::Utf8Path;

/// Bytes that are read for the header and the program headers.
const HEAD: u64 = 1 << 16;

/// Refuses what is no regular file (to open a pipe without a writer would wait for one for ever), and a library that is cut
/// short, or whose end was never written. Files of other formats, 32-bit and big-endian ones are left to the loader, which
/// refuses them by itself.
///
/// # Errors
/// What is wrong.
pub fn check_whole(path: &Utf8Path) -> io::Result<()> {
    let cut = |why: String| io::Error::new(io::ErrorKind::InvalidData, why);
    if !fs_err::metadata(path)?.is_file() {
        return Err(cut("it is no regular file".to_owned()));
    }
    let mut file = fs_err::File::open(path)?;
    let size = file.metadata()?.len();
    let mut head = Vec::new();
    file.by_ref().take(HEAD).read_to_end(&mut head)?;
    let Some(Tables { end, names }) = Tables::read(&head) else { return Ok(()) };
    if end > size {
        return Err(cut(format!("the file is cut short: it has {size} bytes and says that it has {end}")));
    }
    if let Some(names) = names {
        let mut header = [0; 8];
        file.seek(SeekFrom::Start(names))?;
        file.read_exact(&mut header)?;
        if header[4..] == UNUSED {
            return Err(cut("the file is not whole: the table of its sections was never written".to_owned()));
        }
    }
    Ok(())
}

/// `SHT_NULL`: the header of a section that is not there.
const UNUSED: [u8; 4] = [0; 4];

/// What a file says of itself (ELF-64 header and program headers, System V gABI chapters 4 and 5).
#[derive(Debug, PartialEq, Eq)]
struct Tables {
    /// The end of the last segment, or of the section table.
    end: u64,
    /// Where the header of the section with the sections' names is.
    names: Option<u64>,
}

impl Tables {
    fn read(head: &[u8]) -> Option<Self> {
        let elf64_little = head.get(..6)? == [0x7f, b'E', b'L', b'F', 2, 1];
        if !elf64_little {
            return None;
        }
        let u16_at = |at: usize| Some(u64::from(u16::from_le_bytes(head.get(at..at + 2)?.try_into().ok()?)));
        let u64_at = |at: usize| Some(u64::from_le_bytes(head.get(at..at + 8)?.try_into().ok()?));
        let (program_offset, section_offset) = (u64_at(32)?, u64_at(40)?);
        let (program_size, programs, section_size, sections) =
            (u16_at(54)?, u16_at(56)?, u16_at(58)?, u16_at(60)?);
        let mut end = section_offset.saturating_add(section_size * sections);
        for i in 0..programs {
            let at = program_offset.saturating_add(i * program_size);
            end = end.max(at.saturating_add(program_size));
            // Where the table itself lies beyond what was read, its own end is all that is known.
            let segment = usize::try_from(at).ok().filter(|at| *at < head.len());
            if let Some((offset, size)) = segment.and_then(|at| Some((u64_at(at + 8)?, u64_at(at + 32)?))) {
                end = end.max(offset.saturating_add(size));
            }
        }
        // 0 is none; a number that does not fit stands elsewhere.
        let names = u16_at(62)?;
        let names =
            (1..sections).contains(&names).then_some(section_offset.saturating_add(names * section_size));
        Some(Self { end, names })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_program_is_whole() {
        let this = std::env::current_exe().unwrap();
        check_whole(Utf8Path::from_path(&this).unwrap()).unwrap();
    }

    #[test]
    fn any_bytes_are_survived() {
        assert_eq!(Tables::read(b""), None);
        assert_eq!(Tables::read(b"text that is not a library"), None);
        let mut head = vec![0xff; 200];
        head[..6].copy_from_slice(&[0x7f, b'E', b'L', b'F', 2, 1]);
        assert_eq!(Tables::read(&head), Some(Tables { end: u64::MAX, names: None }));
        for len in 0..head.len() {
            let _ = Tables::read(&head[..len]);
        }
    }
}
