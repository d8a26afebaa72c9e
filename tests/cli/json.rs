//! `--json` of the verbs that change something.

use serde_json::{Value, json};

use super::*;

#[test]
fn what_was_done_is_one_object() {
    let daemon = Daemon::start(vec![idle()]);
    let done = |arguments: &[&str]| -> Value {
        let text = daemon.done(&[arguments, &["--json"]].concat());
        serde_json::from_str(&text).unwrap_or_else(|e| panic!("{arguments:?}: {e} in {text}"))
    };
    assert_eq!(
        done(&["snapshot", "a", "--cow", "/a.cow", "--size", "1M"]),
        json!({"snapshot": "a", "cow": "/a.cow"})
    );
    assert_eq!(
        done(&["grow", "a", "1M"]),
        json!({"snapshot": "a", "size": 1 << 20})
    );
    assert_eq!(done(&["resize", "2M"])["size"], 2 << 20);
    assert_eq!(done(&["remove", "a", "b"]), json!({"removed": ["a", "b"]}));
    assert_eq!(done(&["detach", "/f.sock"]), json!({"socket": "/f.sock"}));
    assert_eq!(
        done(&["rollback", "good", "--keep", "k", "--cow", "/k.cow"]),
        json!({"snapshot": "good", "outcome": "at-next-reset", "notes": [], "kept": "k", "merged": false})
    );
    assert_eq!(done(&["rollback", "--cancel"]), json!({"cancelled": true}));
    assert_eq!(
        done(&["merge", "good"]),
        json!({"snapshot": "good", "merged": false})
    );
    assert_eq!(done(&["merge", "--pause"]), json!({"paused": true}));
    let resumed = done(&["merge", "--resume", "--rate", "1M"]);
    assert_eq!(
        (&resumed["rate"], &resumed["resumed"]),
        (&json!(1 << 20), &json!(true))
    );
    assert_eq!(done(&["release"]), json!({"released": true}));

    let daemon = Daemon::start(vec![idle(), merging(None), merged()]);
    let text = daemon.done(&["merge", "good", "--wait", "--json"]);
    let object: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(object, json!({"snapshot": "good", "merged": true}));
}

#[test]
fn an_error_is_one_object_on_stderr() {
    let daemon = Daemon::start(vec![idle()]);
    let failed = |output: &Output| -> Value {
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        let text = stderr(output);
        serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e} in {text}"))
    };
    let refused = daemon.run(&["remove", "a", "refused", "b", "--json"]);
    assert_eq!(
        failed(&refused),
        json!({"kind": "conflict", "message": "a merge is running: wait for it"})
    );
    // What was done before is told as well.
    let done: Value = serde_json::from_str(&stdout(&refused)).unwrap();
    assert_eq!(done, json!({"removed": ["a"]}));

    for (arguments, kind) in [
        (&["grow", "a", "--json"][..], "usage"),
        (&["status", "--json", "--dm"], "usage"),
        (&["grow", "a", "1M", "--json"], "usage"),
        (&["release", "--json", "--control", "/nowhere"], "no-daemon"),
        (&["info", "/nowhere\u{1b}", "--json"], "failed"),
    ] {
        let output = snapback(arguments);
        let error = failed(&output);
        assert_eq!(error["kind"], kind, "{arguments:?}");
        assert!(!error["message"].as_str().unwrap().is_empty());
        assert!(!stderr(&output).contains('\u{1b}'));
        assert_eq!(stdout(&output), "");
    }
}
