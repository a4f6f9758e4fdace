//! The bill of materials of the program: CycloneDX 1.6.

use anyhow::Result;
use camino::Utf8Path;
use serde_json::json;
use sha2::{Digest, Sha256};

use super::licences::BuiltPackage;

/// Names every package that the program is built from, and the program by its digest.
pub(super) fn write(version: &str, program: &Utf8Path, packages: &[BuiltPackage]) -> Result<String> {
    let sha256 = hex::encode(Sha256::digest(fs_err::read(program)?));
    let component = |p: &BuiltPackage| {
        json!({
            "type": "library", "bom-ref": format!("pkg:cargo/{}@{}", p.name, p.version), "name": p.name,
            "version": p.version, "purl": format!("pkg:cargo/{}@{}", p.name, p.version),
            "licenses": [{ "expression": p.license.replace('/', " OR ") }],
        })
    };
    let bom = json!({
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {
            "component": {
                "type": "application", "bom-ref": "dpar-export", "name": "dpar-export", "version": version,
                "hashes": [{ "alg": "SHA-256", "content": sha256 }],
            },
        },
        "components": packages.iter().map(component).collect::<Vec<_>>(),
    });
    Ok(serde_json::to_string_pretty(&bom)? + "\n")
}
