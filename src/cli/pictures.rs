//! Pictures and screens in the documents: they are what the program draws.

/// Asserts that the file `name` of the repository is `drawn`; with `SNAPBACK_WRITE_PICTURES` it
/// is written.
#[track_caller]
pub fn assert_shown(name: &str, drawn: &str) {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(name);
    if std::env::var_os("SNAPBACK_WRITE_PICTURES").is_some() {
        std::fs::write(&path, drawn).unwrap();
    }
    let shown = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        shown == drawn,
        "{name} is not what is drawn; SNAPBACK_WRITE_PICTURES=1 with the same test writes it"
    );
}
