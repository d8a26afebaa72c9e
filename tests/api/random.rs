//! Random requests, valid and not, against a daemon and a model of what it must know.
//!
//! What was accepted must be in the status, what was refused must have changed nothing, and no
//! request, however wrong, may be the daemon's fault or its end. `SNAPBACK_API_CASES` sets the
//! number of sequences.

use std::collections::BTreeMap;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use serde_json::{Value, json};

use crate::description::Description;
use crate::world::{BYTES, World};

/// Sequences of the usual run.
const CASES: u32 = 8;
/// Requests of one sequence.
const REQUESTS: usize = 24;

#[derive(Clone, Debug)]
enum Body {
    Nothing,
    Text(String),
    /// This many bytes.
    Long(usize),
    Json(Value),
}

impl Body {
    fn text(&self, world: &World) -> String {
        let here = world.path("").to_str().unwrap().to_owned();
        match self {
            Self::Nothing => String::new(),
            Self::Text(text) => text.clone(),
            Self::Long(bytes) => "7".repeat(*bytes),
            Self::Json(value) => value.to_string().replace("HERE/", &here),
        }
    }
}

#[derive(Clone, Debug)]
struct Request {
    method: String,
    path: String,
    body: Body,
}

fn name() -> impl Strategy<Value = String> {
    prop_oneof![
        8 => prop::sample::select(vec!["a", "b", "c"]).prop_map(str::to_owned),
        1 => "[a-zA-Z0-9+_.-]{0,70}",
        1 => prop::sample::select(vec!["..", "%2e", "a%2Fb", "-x", "\u{e9}", "a?b", "a#b", "a%00"])
            .prop_map(str::to_owned),
    ]
}

fn size() -> impl Strategy<Value = Value> {
    prop_oneof![
        8 => (1_u64..32).prop_map(|n| json!(n << 18)),
        1 => any::<u64>().prop_map(|n| json!(n)),
        1 => prop::sample::select(vec![json!(-1), json!(1.5), json!("1M"), json!(null), json!(1u64 << 62)]),
    ]
}

fn chunk_size() -> impl Strategy<Value = Value> {
    prop_oneof![
        4 => Just(json!(null)),
        2 => prop::sample::select(vec![json!(4096), json!(512), json!(65536)]),
        1 => any::<u32>().prop_map(|n| json!(n)),
    ]
}

fn spec() -> impl Strategy<Value = Value> {
    let cow = prop_oneof![
        8 => prop::sample::select(vec!["HERE/a.cow", "HERE/b.cow", "HERE/c.cow"]),
        1 => prop::sample::select(vec!["relative", "", "/nonexistent/x", "HERE/disk.img", "HERE/", "/dev/null"]),
    ];
    let kind = prop::sample::select(vec!["P", "PO", "N", "X"]);
    (cow, kind, size(), chunk_size(), 0..12_u8).prop_map(|(cow, kind, size, chunk, more)| {
        let mut spec = json!({"cow": cow, "type": kind, "size": size, "chunk_size": chunk});
        match more {
            0 => spec["unknown"] = json!(1),
            1 => spec["socket"] = json!("HERE/s.sock"),
            2 => spec["read_only"] = json!(true),
            3 => spec["discard_passdown_origin"] = json!(true),
            4 => spec["name"] = json!("b"),
            5 => spec["defer_entries"] = json!(true),
            _ => {}
        }
        spec
    })
}

fn request(method: &str, path: impl Into<String>, body: Body) -> Request {
    Request {
        method: method.to_owned(),
        path: path.into(),
        body,
    }
}

/// A request with a meaning, most of the time.
fn meant() -> impl Strategy<Value = Request> {
    let rollback = (
        name(),
        prop::sample::select(vec!["auto", "at-reset", "now", "vmm", "x"]),
    );
    prop_oneof![
        6 => (name(), spec()).prop_map(|(name, spec)| {
            request("PUT", format!("/v1/snapshots/{name}"), Body::Json(spec))
        }),
        3 => (name(), prop::sample::select(vec!["", "?force=true", "?force=x"])).prop_map(|(name, query)| {
            request("DELETE", format!("/v1/snapshots/{name}{query}"), Body::Nothing)
        }),
        2 => (name(), size()).prop_map(|(name, size)| {
            request("PUT", format!("/v1/snapshots/{name}/size"), Body::Json(json!({"size": size})))
        }),
        1 => size().prop_map(|size| {
            request("PUT", "/v1/origin/size", Body::Json(json!({"size": size})))
        }),
        2 => rollback.prop_map(|(name, when)| {
            request("POST", "/v1/rollback", Body::Json(json!({"snapshot": name, "when": when})))
        }),
        1 => Just(request("DELETE", "/v1/rollback", Body::Nothing)),
        1 => (name(), any::<bool>()).prop_map(|(name, follow)| {
            let body = json!({"snapshot": name, "follow": follow, "rate": 1 << 20});
            request("POST", "/v1/merge", Body::Json(body))
        }),
        1 => prop::sample::select(vec!["pause", "resume"]).prop_map(|what| {
            request("POST", format!("/v1/merge/{what}"), Body::Nothing)
        }),
        1 => size().prop_map(|rate| {
            request("PUT", "/v1/merge/rate", Body::Json(json!({"rate": rate})))
        }),
        1 => prop::sample::select(vec![
            "/", "/v1/", "/v1/table", "/v1/events", "/v1/events?since=3", "/v1/events?since=x",
            "/v1/operations", "/v1/operations/x", "/v1/operations/x?wait=1", "/v1/openapi.json",
        ])
        .prop_map(|path| request("GET", path, Body::Nothing)),
    ]
}

/// Any method at any path with any body, except for the end of the daemon and for answers
/// without end.
fn wild() -> impl Strategy<Value = Request> {
    let method = prop_oneof![
        prop::sample::select(vec!["GET", "PUT", "POST", "DELETE"]).prop_map(str::to_owned),
        "[A-Z]{1,9}",
    ];
    let path = prop_oneof![
        "/v1/(status|table|events|merge|rollback|snapshots/a|origin/size|merge/rate)",
        "/[ -~]{0,40}".prop_map(|text| text.replace(' ', "+")),
        (1_usize..20_000).prop_map(|length| format!("/{}", "x".repeat(length))),
    ];
    let body = prop_oneof![
        Just(Body::Nothing),
        "\\PC{0,40}".prop_map(Body::Text),
        (0_usize..90_000).prop_map(Body::Long),
        spec().prop_map(Body::Json),
    ];
    (method, path, body)
        .prop_map(|(method, path, body)| Request { method, path, body })
        .prop_filter("it ends the daemon or never ends", |request| {
            let head = request.method == "HEAD" || request.method == "CONNECT";
            !head && !request.path.contains("follow") && !request.path.contains("release")
        })
}

fn requests() -> impl Strategy<Value = Vec<Request>> {
    prop::collection::vec(prop_oneof![4 => meant(), 1 => wild()], 1..REQUESTS)
}

/// What the daemon must know.
#[derive(Debug, Default)]
struct Model {
    /// Names of the snapshots, and the paths of their COWs.
    snapshots: BTreeMap<String, String>,
    pending: Option<String>,
    sectors: u64,
}

impl Model {
    /// Takes note of a request that was accepted.
    fn accept(&mut self, request: &Request, body: &str, answer: &Value) {
        let path = request.path.split(['?', '#']).next().unwrap();
        let parts: Vec<&str> = path.split('/').skip(2).collect();
        let body: Value = serde_json::from_str(body).unwrap_or_default();
        let text = |field: &str| body[field].as_str().unwrap_or_default().to_owned();
        match (request.method.as_str(), &parts[..]) {
            ("PUT", ["snapshots", name]) => {
                let earlier = self.snapshots.insert((*name).to_owned(), text("cow"));
                assert_eq!(earlier, None, "{name} was there");
            }
            ("DELETE", ["snapshots", name]) => {
                assert!(
                    self.snapshots.remove(*name).is_some(),
                    "{name} was not there"
                );
                self.pending.take_if(|pending| pending == name);
            }
            ("PUT", ["snapshots", name, "size"]) => assert!(self.snapshots.contains_key(*name)),
            ("PUT", ["origin", "size"]) => self.sectors = answer["size"].as_u64().unwrap() / 512,
            ("DELETE", ["rollback"]) => assert!(self.pending.take().is_some()),
            ("POST", ["rollback"]) if answer["outcome"] == "at-next-reset" => {
                self.pending = Some(text("snapshot"));
            }
            // No guest is attached: it is rolled back now.
            ("POST", ["rollback" | "merge"]) => {
                let snapshot = text("snapshot");
                assert!(
                    self.snapshots.contains_key(&snapshot),
                    "{snapshot} was not there"
                );
                self.snapshots.remove(&snapshot);
                self.pending = None;
            }
            _ => {}
        }
    }

    fn check(&self, status: &Value) {
        let listed = status["snapshots"].as_array().unwrap();
        let listed: BTreeMap<String, String> = listed
            .iter()
            .map(|s| {
                let text = |field: &str| s[field].as_str().unwrap().to_owned();
                (text("name"), text("cow"))
            })
            .collect();
        assert_eq!(listed, self.snapshots);
        assert_eq!(status["origin"]["sectors"], self.sectors);
        assert_eq!(
            status["rollback_at_reset"].as_str(),
            self.pending.as_deref()
        );
        assert_eq!(status["merge"], Value::Null);
    }
}

fn run(requests: &[Request]) {
    let mut world = World::start(&[]);
    let mut described = Description::of(&world);
    let mut model = Model {
        sectors: BYTES / 512,
        ..Model::default()
    };
    for request in requests {
        let body = request.body.text(&world);
        let answer = world.ask(&request.method, &request.path, &body);
        assert!(answer.status < 500, "{request:?}: {answer:?}");
        if answer.status != 400 && answer.status < 414 {
            described.check(&request.method, &request.path, &answer);
        }
        if answer.status < 300 && request.method != "GET" {
            let value: Value = serde_json::from_str(&answer.body).unwrap_or_default();
            // What there is to merge is nothing, but that takes its time, too.
            if let Some(location) = answer.header("location")
                && value["outcome"] != "at-next-reset"
            {
                let path = format!("{location}?wait=20");
                let ended = described.ask(&world, "GET", &path, "").json();
                assert_eq!(ended["state"], "succeeded", "{ended}");
            }
            model.accept(request, &body, &value);
        }
        let status = described.ask(&world, "GET", "/v1/status", "").assert(200);
        model.check(&status.json());
    }
    let ended = world.daemon.as_mut().unwrap().try_wait().unwrap();
    assert_eq!(ended, None, "{}", world.log());
    world.terminate();
}

#[test]
fn a_daemon_takes_any_requests_and_does_what_it_says() {
    let cases = std::env::var("SNAPBACK_API_CASES").ok();
    let config = Config {
        cases: cases.map_or(CASES, |cases| cases.parse().unwrap()),
        failure_persistence: None,
        max_shrink_iters: 300,
        ..Config::default()
    };
    let mut runner = TestRunner::new(config);
    let result = runner.run(&requests(), |requests| {
        run(&requests);
        Ok(())
    });
    if let Err(failed) = result {
        panic!("{failed}");
    }
}
