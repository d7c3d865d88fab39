//! Comparison with a file of what is expected.

use std::{env, fs, path::PathBuf};

/// Compares `got` with the golden file `name`, or writes it where `NETPROBE_BLESS=1` asks for it.
#[track_caller]
pub(crate) fn matches_golden(name: &str, got: &[u8]) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("replay/golden")
        .join(name);
    let got = String::from_utf8(got.to_vec()).expect("output is UTF-8");
    if env::var_os("NETPROBE_BLESS").is_some_and(|bless| bless == "1") {
        fs::write(&path, &got).expect("write the golden file");
        return;
    }
    let expected = fs::read_to_string(&path).unwrap_or_default();
    assert!(
        got == expected,
        "{name} differs from its golden file (NETPROBE_BLESS=1 rewrites it)\n\
         --- expected\n{expected}\n--- got\n{got}"
    );
}
