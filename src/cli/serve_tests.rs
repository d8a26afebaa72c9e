use super::*;
use clap::Parser;

#[derive(Debug, Parser)]
struct Only {
    #[command(flatten)]
    serve: Serve,
}

fn options(arguments: &[&str]) -> Result<ServeOptions, String> {
    let arguments = std::iter::once("serve").chain(arguments.iter().copied());
    Only::try_parse_from(arguments)
        .map_err(|e| e.to_string())?
        .serve
        .options()
}

#[test]
fn a_full_command_line_gives_these_options() {
    let options = options(&[
        "--origin",
        "/d/disk.img",
        "--socket-path",
        "/d/a.sock",
        "--control",
        "/d/c.sock",
        "--snapshot",
        "name=s1,cow=/d/s1.cow,size=256M,chunk-size=4K,socket=/d/s1.sock",
        "--merge",
        "s1",
        "--merge-writes",
        "redirect",
        "--io-engine",
        "io_uring",
        "--poll-us",
        "0",
        "--logical-block-size",
        "4K",
        "--opt-io",
        "1M",
        "--socket-group",
        "kvm",
        "--control-mode",
        "666",
    ])
    .unwrap();
    assert_eq!(options.origin, PathBuf::from("/d/disk.img"));
    assert_eq!(
        options.endpoint,
        Some(Endpoint::Path(PathBuf::from("/d/a.sock")))
    );
    assert_eq!(options.control, Some(PathBuf::from("/d/c.sock")));
    assert_eq!(options.merge.as_deref(), Some("s1"));
    assert_eq!(options.merge_writes, Some(MergeWrites::Redirect));
    assert_eq!(options.io_engine, IoEngine::IoUring);
    assert_eq!(options.polling, Duration::ZERO);
    assert_eq!(options.num_queues, 64);
    let blocks = options.blocks;
    assert_eq!((blocks.logical, blocks.opt_io), (Some(4096), Some(1 << 20)));
    assert_eq!((blocks.physical, blocks.discard_granularity), (None, None));
    let (views, control) = (&options.socket_access, &options.control_access);
    assert_eq!((views.group.as_deref(), views.mode), (Some("kvm"), None));
    assert_eq!((&control.group, control.mode), (&None, Some(0o666)));
    let spec = options.snapshots.first().unwrap();
    assert_eq!(
        (spec.name.as_str(), spec.size, spec.chunk_size),
        ("s1", Some(256 << 20), Some(4096))
    );
    assert_eq!(spec.socket.as_deref(), Some("/d/s1.sock"));
}

#[test]
fn defaults_ask_for_nothing_unusual() {
    let options = options(&["--blk-file", "/d/disk.img", "--fd", "5"]).unwrap();
    assert_eq!(options.endpoint, Some(Endpoint::Fd(5)));
    assert_eq!(options.io_engine, IoEngine::Auto);
    assert_eq!(options.merge_writes, None);
    assert_eq!(options.polling, Duration::from_micros(32));
    assert!(!options.read_only && !options.accept_changes);
    assert!(options.forget.is_empty() && options.snapshots.is_empty());
}

#[test]
fn contradictions_are_refused_with_the_way_out() {
    let base = ["--origin", "/d"];
    for (more, word) in [
        (
            &["--fd", "5", "--socket-path", "/s"][..],
            "cannot be used with",
        ),
        (&["--fd", "2"], "3.."),
        (&["--fd", "5", "--connect", "/s"], "cannot be used with"),
        (
            &["--connect", "/a", "--socket-path", "/s"],
            "cannot be used with",
        ),
        (
            &["--control", "/c", "--control-fd", "5"],
            "cannot be used with",
        ),
        (
            &["--control-fd", "5", "--fd", "5"],
            "descriptor 5 is given twice",
        ),
        (
            &["--fd", "5", "--snapshot", "name=a,cow=/1,fd=5"],
            "descriptor 5 is given twice",
        ),
        (
            &["--snapshot", "name=a,cow=/1", "--snapshot", "name=a,cow=/2"],
            "two snapshots are named `a`",
        ),
        (
            &["--snapshot", "name=a,cow=/1", "--forget", "a"],
            "--forget",
        ),
        (&["--merge", "a", "--forget", "a"], "--merge"),
        (&["--merge", "a", "--read-only"], "--read-only"),
        (&["--num-queues", "0"], "1..=256"),
        (&["--num-queues", "257"], "1..=256"),
        (&["--poll-us", "51"], "0..=50"),
        (&["--logical-block-size", "1000"], "power of two"),
    ] {
        let error = options(&[&base, more].concat()).unwrap_err();
        assert!(error.contains(word), "{more:?}: {error}");
    }
}
