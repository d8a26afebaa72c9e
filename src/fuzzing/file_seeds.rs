//! The first inputs of the targets for files and clients.

type Seeds = Vec<(String, Vec<u8>)>;

/// Good stores of every chunk size, and one for each kind of damage.
pub fn store() -> Seeds {
    let mut seeds = Vec::new();
    let header = |chunk: u8, flags: u8, first: u8, entries: u8| {
        vec![chunk, 20, 12, chunk, flags, 0, first, entries]
    };
    for chunk in 0..4 {
        for (name, entries) in [("empty", 0), ("few", 5), ("many", 31)] {
            for flags in [0, 1] {
                let how = if flags == 1 { "merged" } else { "read" };
                let name = format!("good-{chunk}-{name}-{how}");
                seeds.push((name, header(chunk, flags, 3, entries)));
            }
        }
    }
    let damages: [(&str, &[u8]); 12] = [
        ("magic", &[0, 0, 0x54]),
        ("version", &[0, 8, 2]),
        ("chunk-size", &[0, 14, 0x10]),
        ("invalid", &[0, 4, 0]),
        ("beyond-store", &[1, 1, 1, 8]),
        ("metadata", &[1, 1, 1, 1]),
        ("beyond-origin", &[1, 1, 5, 3]),
        ("bit", &[2, 1, 9, 0x40]),
        ("repeated", &[3, 1, 5]),
        ("cut", &[4, 21, 0, 0]),
        ("odd", &[4, 255, 255, 1, 4, 201, 30, 1]),
        ("stale", &[5, 2, 16, 0]),
    ];
    for (name, damage) in damages {
        for chunk in [0, 1] {
            let bytes = [&header(chunk, 1, 0, 6), damage].concat();
            seeds.push((format!("{name}-{chunk}"), bytes));
        }
    }
    seeds.push((
        "new".into(),
        vec![0, 20, 12, 0, 1, 0, 0, 0, 5, 0, 0, 0, 0, 0, 4, 0],
    ));
    seeds.push((
        "zeroes".into(),
        [vec![0, 20, 12, 0, 3], vec![0; 2048]].concat(),
    ));
    seeds.push(("nothing".into(), vec![0, 20, 12, 0, 7]));
    seeds
}

/// State files of every version and with everything that can be recorded.
pub fn state() -> Seeds {
    let origin = r#""origin":{"path":"disk.img","size":1048576,"kind":{"device":{"names":[]}}}"#;
    let empty = r#""socket":null,"followed_sockets":[],"control":null,"serial":null,"snapshots":[],"merge":null,"rollback_at_reset":null"#;
    let snapshot = |name: &str, cow: &str| {
        format!(
            r#"{{"spec":{{"name":"{name}","cow":"{cow}","type":"PO","chunk_size":4096,"socket":"s/{name}.sock","discard_zeroes_cow":true,"read_only":true}},"valid":true,"length":1048576,"id":"0a"}}"#
        )
    };
    let full = format!(
        r#"{{"version":2,"volume":"00112233445566778899aabbccddeeff","generation":7,
        "marked":{{"volume":"00112233445566778899aabbccddeeff","generation":6}},"home":"/vm",
        "running":true,"guest_attached":true,{origin},"socket":"a.sock",
        "followed_sockets":["f.sock","/elsewhere/g.sock"],"read_only_sockets":["f.sock"],
        "write_through_sockets":["a.sock"],"control":"/run/c.sock","qmp":"q.sock",
        "stopped_guest":{{"qmp":"q.sock","snapshot":"s1"}},"serial":"disk-1",
        "blocks":{{"logical":512,"physical":4096}},"socket_access":{{"group":"kvm","mode":432}},
        "control_access":{{"mode":384}},"snapshots":[{},{}],
        "merge":{{"snapshot":"s1","follow":true,"writes":"redirect","paused":true,"rate":1048576}},
        "rollback_at_reset":{{"snapshot":"s2","rate":0,"qmp":"q.sock"}}}}"#,
        snapshot("s1", "s1.cow"),
        snapshot("s2", "/cows/s2.cow"),
    );
    let mut seeds: Vec<(String, String)> = vec![
        (
            "blank".into(),
            format!(r#"{{"version":2,"running":false,{origin},{empty}}}"#),
        ),
        (
            "oldest".into(),
            format!(r#"{{"version":1,"running":false,{origin},{empty}}}"#)
                .replace("disk.img", "/vm/disk.img"),
        ),
        (
            "newer".into(),
            format!(r#"{{"version":3,{origin},{empty}}}"#),
        ),
        ("not-json".into(), "{\"version\":2,".into()),
        ("nothing".into(), String::new()),
        ("twice".into(), full.replace("\"s2\"", "\"s1\"")),
        (
            "unknown-merge".into(),
            full.replace(r#"{"snapshot":"s1","f"#, r#"{"snapshot":"s9","f"#),
        ),
        (
            "odd-paths".into(),
            full.replace("s1.cow", "../x/./s1.cow")
                .replace("a.sock", ""),
        ),
    ];
    seeds.push(("full".into(), full));
    let bytes = seeds
        .into_iter()
        .map(|(name, text)| (name, text.into_bytes()));
    bytes.collect()
}

/// A request to every path with every method, bodies good and bad, and bytes that are none.
pub fn request() -> Seeds {
    let mut seeds = Vec::new();
    for path in 0..18 {
        for method in 0..4 {
            let name = format!("path-{path}-method-{method}");
            seeds.push((name, vec![0, method, path, 0]));
        }
    }
    let bodies: [(&str, u8, u8, &str); 14] = [
        (
            "snapshot",
            1,
            8,
            "\n{\"cow\":\"/a.cow\",\"type\":\"PO\",\"size\":1048576}",
        ),
        ("renamed", 1, 8, "\n{\"name\":\"b\",\"cow\":\"/a.cow\"}"),
        ("unknown-key", 1, 8, "\n{\"cow\":\"/a.cow\",\"colour\":1}"),
        ("name", 1, 255, "v1/snapshots/..%2f\n{\"cow\":\"/a.cow\"}"),
        ("forced", 3, 8, "?force=true\n"),
        ("not-forced", 3, 8, "?force=perhaps\n"),
        ("size", 1, 9, "\n{\"size\":2097152}"),
        ("resize", 1, 10, "\n{\"size\":null}"),
        (
            "rollback",
            2,
            11,
            "\n{\"snapshot\":\"a\",\"when\":\"at-reset\",\"rate\":0}",
        ),
        ("merge", 2, 12, "\n{\"snapshot\":\"a\",\"follow\":true}"),
        ("rate", 1, 15, "\n{\"rate\":18446744073709551616}"),
        ("detach", 2, 16, "\n{\"socket\":\"/f.sock\"}"),
        ("since", 0, 4, "?since=7&instance=ab\n"),
        ("follow", 0, 4, "?follow=true\n"),
    ];
    for (name, method, path, text) in bodies {
        for (how, flags, length) in [("", 0, 0), ("-refused", 2, 0), ("-cut", 0, 7)] {
            let bytes = [&[flags, method, path, length], text.as_bytes()].concat();
            seeds.push((format!("{name}{how}"), bytes));
        }
    }
    let raw: [(&str, &str); 7] = [
        ("raw", "GET /v1/status HTTP/1.1\r\nhost: d\r\n\r\n"),
        (
            "raw-1.0",
            "GET /metrics HTTP/1.0\r\naccept: application/openmetrics-text\r\n\r\n",
        ),
        (
            "raw-two",
            "GET /v1/ HTTP/1.1\r\n\r\nDELETE /v1/snapshots/a HTTP/1.1\r\n\r\n",
        ),
        (
            "raw-chunks",
            "PUT /v1/merge/rate HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\na\r\n{\"rate\":1}\r\n0\r\n\r\n",
        ),
        (
            "raw-both",
            "PUT /v1/merge/rate HTTP/1.1\r\ntransfer-encoding: chunked\r\ncontent-length: 3\r\n\r\n0\r\n\r\n",
        ),
        ("raw-tls", "\u{16}\u{3}\u{1}"),
        ("raw-half", "GET /v1/status HTT"),
    ];
    for (name, text) in raw {
        let bytes = [&[1, 0, 0, 0], text.as_bytes()].concat();
        seeds.push((name.to_owned(), bytes));
    }
    seeds
}

/// The example of the package, and one file for each kind of key and mistake.
pub fn config() -> Seeds {
    let example = include_str!("../../packaging/example.toml");
    let texts = [
        ("example", example.to_owned()),
        ("example-all", example.replace("\n# ", "\n")),
        ("empty", String::new()),
        ("kinds", "origin = \"disk.img\"\nread-only = true\nany-guest-memory = false\nnum-queues = 0x4\nsocket-mode = 0o660\ncontrol-mode = \"600\"\ncontrol-allow = [\"all\", 1000]\nlog-level = \"debug\"\n".to_owned()),
        ("snapshots", "origin = \"d\"\n[[snapshot]]\nname = \"a\"\ncow = \"a,b.cow\"\nsize = \"2G\"\nread-only = true\n[[snapshot]]\nname = \"b\"\ncow = \"/b\"\nfd = 7\n".to_owned()),
        ("once", "merge = \"a\"\n".to_owned()),
        ("unknown", "colour = 1\n".to_owned()),
        ("type", "origin = [1]\n".to_owned()),
        ("line", "origin = \"d\"\n\"a\\nb\" = 1\n".to_owned()),
        ("escape", "[[snapshot]]\n\"x\\u001b[31m\" = \"y\"\n".to_owned()),
        ("value", "origin = \"d\"\nserial = \"\\u001b\\n\"\nnum-queues = \"\\u001b]0;x\"\n".to_owned()),
        ("not-toml", "origin = \n".to_owned()),
        ("dates", "origin = 1979-05-27\n".to_owned()),
    ];
    let seeds = texts.map(|(name, text)| (name.to_owned(), text.into_bytes()));
    seeds.into()
}
