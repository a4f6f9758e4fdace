//! A shared library that is cut short is mapped by the system loader and then ends the process (`SIGBUS`) when the
//! missing part is touched. This compares what an ELF file says about its own size with the size it has.

use std::io::Read;

use camino::Utf8Path;

/// Refuses a file that is cut short. Files of other formats, 32-bit and big-endian ones are left to the loader,
/// which refuses them by itself.
pub(crate) fn check_complete(path: &Utf8Path) -> Result<(), String> {
    let describe = |e: &dyn std::fmt::Display| e.to_string();
    let mut file = fs_err::File::open(path).map_err(|e| describe(&e))?;
    let size = file.metadata().map_err(|e| describe(&e))?.len();
    let mut head = vec![0; usize::try_from(size.min(1 << 16)).unwrap_or_default()];
    file.read_exact(&mut head).map_err(|e| describe(&e))?;
    match needed(&head) {
        Some(needed) if needed > size => {
            Err(format!("the file is cut short: it has {size} bytes and says that it has {needed}"))
        }
        _ => Ok(()),
    }
}

/// The end of the last segment and of the section table (ELF-64 header and program headers, System V gABI
/// chapter 4 and 5).
fn needed(head: &[u8]) -> Option<u64> {
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
    Some(end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cut_file_is_seen_and_a_whole_one_passes() {
        let this = std::env::current_exe().unwrap();
        let this = Utf8Path::from_path(&this).unwrap();
        check_complete(this).unwrap();
        if !cfg!(target_os = "linux") {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let cut = Utf8Path::from_path(dir.path()).unwrap().join("cut.so");
        let bytes = std::fs::read(this).unwrap();
        for len in [64, 4096, bytes.len() / 2, bytes.len() - 1] {
            std::fs::write(&cut, &bytes[..len]).unwrap();
            let e = check_complete(&cut);
            assert!(e.is_err_and(|e| e.contains("cut short")), "{len} of {}", bytes.len());
        }
    }

    #[test]
    fn any_bytes_are_survived() {
        assert_eq!(needed(b""), None);
        assert_eq!(needed(b"text that is not a library"), None);
        let mut head = vec![0xff; 200];
        head[..6].copy_from_slice(&[0x7f, b'E', b'L', b'F', 2, 1]);
        assert_eq!(needed(&head), Some(u64::MAX));
        for len in 0..head.len() {
            let _ = needed(&head[..len]);
        }
    }
}
