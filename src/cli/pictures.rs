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

/// The same for a block of text in the document `name`, whose first line begins with `start`.
#[track_caller]
pub fn assert_block(name: &str, start: &str, drawn: &str) {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(name);
    let document = std::fs::read_to_string(&path).unwrap();
    let fence = "```\n";
    let (before, rest) = document
        .split_once(&format!("{fence}{start}"))
        .unwrap_or_else(|| panic!("{name} has no block that begins with {start}"));
    let (_, after) = rest.split_once(fence).unwrap();
    assert_shown(name, &format!("{before}{fence}{drawn}{fence}{after}"));
}
