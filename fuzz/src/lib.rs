//! What the targets share: a folder for readers that take a path, and arrays read to their last value.

use std::sync::OnceLock;

use camino::{Utf8Path, Utf8PathBuf};
use dpar_export::arrays::ArrayFile;

/// The workspace's fixtures.
pub fn fixture(path: &str) -> Utf8PathBuf {
    Utf8Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures").join(path)
}

/// A folder of this process; `cargo xtask fuzz` removes what it lies in.
pub fn folder() -> &'static Utf8Path {
    static FOLDER: OnceLock<Utf8PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let base = Utf8PathBuf::from_path_buf(std::env::temp_dir()).expect("a UTF-8 path");
        let folder = base.join(format!("dpar-fuzz-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a folder");
        folder
    })
}

/// A file of the folder with these bytes.
pub fn file(name: &str, bytes: &[u8]) -> Utf8PathBuf {
    let path = folder().join(name);
    std::fs::write(&path, bytes).expect("a file");
    path
}

/// Opens a file of arrays and reads each of them as what it may be asked for.
pub fn read_arrays(path: &Utf8Path) {
    match ArrayFile::open(path) {
        Ok(file) => {
            for array in file.arrays() {
                if let Err(e) = file.get(&array.name) {
                    let _ = e.to_string();
                }
                let any = vec![None; array.shape.len()];
                let _ = (file.i64(&array.name, &any).is_ok(), file.f32(&array.name, &any).is_ok());
            }
        }
        Err(e) => drop(e.to_string()),
    }
}
