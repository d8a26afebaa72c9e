//! Every path, method and answer against the description.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;

use serde_json::{Value, json};

use crate::description::{Description, errors};
use crate::guest::{Ask, Guest, Kind};
use crate::world::{LONG, World};

const METHODS: [&str; 7] = ["GET", "PUT", "POST", "DELETE", "PATCH", "OPTIONS", "TRACE"];

#[test]
fn each_path_takes_the_described_methods_and_no_others() {
    let world = World::start(&[]);
    let mut described = Description::of(&world);
    for (path, methods) in described.paths() {
        let real = path.replace("{name}", "none").replace("{id}", "none");
        for method in METHODS.iter().filter(|method| {
            // That one would end the daemon; the last test of this file asks it.
            (path.as_str(), **method) != ("/v1/release", "POST")
        }) {
            let answer = described.ask(&world, method, &real, "");
            if methods.iter().any(|described| described == method) {
                assert_ne!(answer.status, 405, "{method} {path}");
            } else {
                assert_eq!(answer.status, 405, "{method} {path}");
                let allowed: BTreeSet<&str> = answer.header("allow").unwrap().split(", ").collect();
                let methods: BTreeSet<&str> = methods.iter().map(String::as_str).collect();
                assert_eq!(allowed, methods, "{path}");
            }
        }
        let answer = described.ask(&world, "GET", &format!("{real}/more/of/it"), "");
        assert_eq!(answer.status, 404, "{path}");
    }
}

#[test]
fn the_index_lists_every_path_of_the_description() {
    let world = World::start(&[]);
    let mut described = Description::of(&world);
    let described_paths: BTreeSet<(String, String)> = described
        .paths()
        .into_iter()
        .flat_map(|(path, methods)| methods.into_iter().map(move |one| (path.clone(), one)))
        .collect();
    for path in ["/", "/v1", "/v1/"] {
        let index = described.ask(&world, "GET", path, "").assert(200).json();
        assert_eq!(index["name"], "snapback");
        assert_eq!(index["version"], env!("CARGO_PKG_VERSION"));
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let paths = index["paths"].as_array().unwrap();
        let listed: BTreeSet<(String, String)> = paths
            .iter()
            .map(|one| (text(&one["path"]), text(&one["method"])))
            .collect();
        assert_eq!(listed, described_paths);
        let there = index["openapi"].as_str().unwrap();
        assert_eq!(world.ask("GET", there, "").json(), described.document);
    }
}

/// Changes one sector of each of `chunks` chunks of the disk.
pub fn write(world: &World, chunks: u64) {
    let mut guest = Guest::connect(&world.path("a.sock"), 1, 1);
    for chunk in 0..chunks {
        let ask = Ask {
            kind: Kind::Write,
            sector: chunk * 8,
            len: 512,
            offset: 0,
            cut: 0,
        };
        guest.submit(0, &ask);
        guest.all(1);
    }
}

/// Takes a snapshot that has something to merge, and lets the guest go.
fn snapshot_with_data(world: &mut World, described: &mut Description, name: &str) {
    let path = format!("/v1/snapshots/{name}");
    let spec = world.spec(name, 8 << 20);
    described.ask(world, "PUT", &path, &spec).assert(204);
    write(world, 64);
    world.until("the guest has left", |w| {
        w.status()["views"][0]["attached"] == false
    });
}

#[test]
fn every_answer_of_a_daemon_is_as_described() {
    let mut world = World::start(&[]);
    let mut described = Description::of(&world);
    let d = &mut described;
    for path in [
        "/v1/status",
        "/v1/table",
        "/v1/events",
        "/v1/operations",
        "/metrics",
    ] {
        d.ask(&world, "GET", path, "").assert(200);
    }
    refusals(&world, d);
    snapshot_with_data(&mut world, d, "s1");
    let grown = json!({"size": 12 << 20}).to_string();
    d.ask(&world, "PUT", "/v1/snapshots/s1/size", &grown)
        .assert(204);
    d.ask(&world, "PUT", "/v1/origin/size", "{}").assert(200);
    let spec = world.spec("s2", 1 << 20);
    d.ask(&world, "PUT", "/v1/snapshots/s2", &spec).assert(204);
    let forced = "/v1/snapshots/s2?force=true";
    d.ask(&world, "DELETE", forced, "").assert(204);
    a_rollback_that_is_cancelled(&world, d);
    a_merge(&world, d);
    d.ask(&world, "GET", "/v1/status", "").assert(200);
    every_event(&world, d);
    d.ask(&world, "POST", "/v1/release", "").assert(204);

    // Each operation has succeeded, and each refusal that can be caused was.
    for (path, methods) in d.paths() {
        for method in methods {
            let operation = &d.document["paths"][&path][method.to_lowercase()];
            let id = operation["operationId"].as_str().unwrap();
            let succeeded = |status| d.seen.contains(&(id.to_owned(), status));
            // Detaching needs a merge with `follow`: tests/daemon/detach.rs.
            let index = ["detach", "root", "index", "indexFolder", "description"].contains(&id);
            assert!(index || succeeded(200) || succeeded(204), "{id}");
        }
    }
    let statuses: BTreeSet<u16> = d.seen.iter().map(|(_, status)| *status).collect();
    for status in [400, 404, 408, 409, 413] {
        assert!(statuses.contains(&status), "{status} of {statuses:?}");
    }
    let mut child = world.daemon.take().unwrap();
    assert!(child.wait().unwrap().success());
}

fn refusals(world: &World, d: &mut Description) {
    let long = "x".repeat(70_000);
    for (method, path, body, status) in [
        ("PUT", "/v1/snapshots/s1", "{", 400),
        ("PUT", "/v1/snapshots/-x", "{\"cow\":\"/c\"}", 400),
        ("PUT", "/v1/snapshots/s1", "{\"cow\":\"relative\"}", 400),
        ("PUT", "/v1/snapshots/s1/size", "{\"size\":4096}", 404),
        ("DELETE", "/v1/snapshots/s1", "", 404),
        ("DELETE", "/v1/snapshots/s1?force=1", "", 400),
        ("GET", "/v1/events?since=x", "", 400),
        ("GET", "/v1/operations/none", "", 404),
        ("GET", "/v1/operations/none?wait=21", "", 400),
        ("POST", "/v1/merge", "{\"snapshot\":\"s1\"}", 404),
        ("POST", "/v1/rollback", "{\"snapshot\":\"s1\"}", 404),
        ("POST", "/v1/merge", &long, 413),
        ("DELETE", "/v1/rollback", "", 409),
        ("POST", "/v1/merge/pause", "", 409),
        ("PUT", "/v1/merge/rate", "{\"rate\":1}", 409),
    ] {
        d.ask(world, method, path, body).assert(status);
    }
    // A body that never arrives.
    let half = b"POST /v1/merge HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{";
    let answer = world.send(half).assert(408);
    d.check("POST", "/v1/merge", &answer);
}

fn a_rollback_that_is_cancelled(world: &World, d: &mut Description) {
    let wanted = "{\"snapshot\":\"s1\",\"when\":\"at-reset\"}";
    let answer = d.ask(world, "POST", "/v1/rollback", wanted).assert(200);
    let location = answer.header("location").unwrap().to_owned();
    let state = |d: &mut Description, wait: &str| {
        let path = format!("{location}{wait}");
        d.ask(world, "GET", &path, "").assert(200).json()
    };
    let waiting = state(d, "?wait=1");
    assert_eq!(waiting["state"], "waiting", "{waiting}");
    assert_eq!(waiting["kind"], "rollback");
    assert_eq!(waiting["uid"], rustix::process::geteuid().as_raw());
    d.ask(world, "DELETE", "/v1/rollback", "").assert(204);
    let ended = state(d, "?wait=20");
    assert_eq!(ended["state"], "cancelled", "{ended}");
    assert!(ended["ended"].is_string());
}

fn a_merge(world: &World, d: &mut Description) {
    let wanted = "{\"snapshot\":\"s1\",\"rate\":4096}";
    let answer = d.ask(world, "POST", "/v1/merge", wanted).assert(204);
    let location = answer.header("location").unwrap().to_owned();
    let running = d.ask(world, "GET", &location, "").assert(200).json();
    assert_eq!(running["kind"], "merge");
    assert_eq!(running["state"], "running", "{running}");
    let all = d.ask(world, "GET", "/v1/operations", "").json();
    assert_eq!(all["operations"].as_array().unwrap().len(), 2);
    d.ask(world, "POST", "/v1/merge/pause", "").assert(204);
    let paused = d.ask(world, "GET", &location, "").json();
    assert_eq!(paused["state"], "waiting");
    let merge = &world.status()["merge"];
    assert_eq!(paused["progress"]["chunks_left"], merge["chunks_left"]);
    d.ask(world, "POST", "/v1/merge", wanted).assert(409);
    d.ask(world, "POST", "/v1/merge/resume", "").assert(204);
    d.ask(world, "PUT", "/v1/merge/rate", "{\"rate\":0}")
        .assert(204);
    let path = format!("{location}?wait=20");
    let ended = d.ask(world, "GET", &path, "").assert(200).json();
    assert_eq!(ended["state"], "succeeded", "{ended}");
    assert_eq!(ended["progress"]["chunks_left"], 0);
}

/// The events so far, one by one as they are followed.
fn every_event(world: &World, d: &Description) {
    let event = d.validator(&json!({"$ref": "#/components/schemas/Event"}));
    let mut stream = UnixStream::connect(world.path("c.sock")).unwrap();
    stream.set_read_timeout(Some(LONG)).unwrap();
    stream
        .write_all(b"GET /v1/events?follow=true HTTP/1.1\r\nHost: x\r\n\r\n")
        .unwrap();
    let newest = world.ask("GET", "/v1/events", "").json()["newest"].clone();
    let lines = BufReader::new(stream).lines().map(Result::unwrap);
    let mut kinds = BTreeSet::new();
    for line in lines.filter(|line| line.starts_with('{')) {
        let value: Value = serde_json::from_str(&line).unwrap();
        assert_eq!(errors(&event, &value), Vec::<String>::new(), "{value}");
        kinds.insert(value["kind"].as_str().unwrap().to_owned());
        if value["seq"] == newest {
            break;
        }
    }
    for kind in ["started", "snapshot-added", "handover", "merge-done"] {
        assert!(kinds.contains(kind), "{kinds:?}");
    }
}
