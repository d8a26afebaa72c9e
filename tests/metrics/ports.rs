//! The control socket and the port: who gets what there.

use std::net::TcpListener;

use super::exposition::parse;
use super::scraper::{ask, control, start_with_port, tcp};
use super::world::{World, everything};

const OPEN: &str = "content-type: application/openmetrics-text; version=1.0.0; charset=utf-8";

#[test]
fn the_port_serves_the_metrics_and_nothing_of_the_api() {
    let mut world = World::new();
    let snapshot = ["--snapshot", "name=s,cow=s.cow,size=1M"];
    let address = start_with_port(&mut world, "127.0.0.1:0", &snapshot);
    let get = ask(tcp(address), "GET /metrics", "");
    assert_eq!(get.status, 200);
    assert!(get.head.contains(OPEN), "{}", get.head);
    let there: Vec<_> = parse(&get.body).unwrap().samples.into_keys().collect();
    let get = ask(control(&world), "GET /metrics", "");
    assert!(get.head.contains(OPEN), "{}", get.head);
    let here: Vec<_> = parse(&get.body).unwrap().samples.into_keys().collect();
    assert_eq!(there, here);

    let old = ask(tcp(address), "GET /metrics", "Accept: text/plain\r\n");
    assert!(old.head.contains("content-type: text/plain; version=0.0.4"));
    assert!(!old.body.contains("# EOF"));
    for path in ["/", "/v1/status", "/v1/events", "/metrics/", "/v1/table"] {
        let answer = ask(tcp(address), &format!("GET {path}"), "");
        assert_eq!(answer.status, 404, "{path}");
        assert!(answer.body.contains("only GET /metrics"), "{}", answer.body);
    }
    for method in ["POST", "PUT", "DELETE", "HEAD"] {
        for (path, status) in [("/metrics", 405), ("/v1/release", 404)] {
            let answer = ask(tcp(address), &format!("{method} {path}"), "");
            assert_eq!(answer.status, status, "{method} {path}");
        }
    }
    assert_eq!(ask(control(&world), "POST /metrics", "").status, 405);
    // A client that says nothing does not keep others from it.
    let silent: Vec<_> = (0..4).map(|_| tcp(address)).collect();
    assert_eq!(ask(tcp(address), "GET /metrics", "").status, 200);
    drop(silent);
    let state = world.state();
    assert!(!state.to_string().contains("metrics"), "{state}");
    world.terminate();
    TcpListener::bind(address).unwrap();
}

#[test]
fn a_port_that_is_not_to_be_had_is_refused_before_anything_is_touched() {
    let world = World::new();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let before = everything(world.folder.path());
    let snapshot = "name=s,cow=s.cow,size=1M";
    let serve = [
        "--socket-path",
        "a.sock",
        "--snapshot",
        snapshot,
        "--metrics",
    ];
    let refuse = |metrics: &[&str]| world.refuse(&[&serve, metrics].concat());
    let text = refuse(&[&address]);
    assert!(text.contains(&address) && text.contains("in use"), "{text}");
    // An address that no machine has (RFC 5737).
    let text = refuse(&["192.0.2.1:9750", "--metrics-any-address"]);
    assert!(text.contains("192.0.2.1:9750: cannot listen"), "{text}");
    for open in ["0.0.0.0:9750", "192.0.2.1:9750", "[::]:9750"] {
        let text = refuse(&[open]);
        assert!(text.contains("--metrics-any-address"), "{text}");
        assert!(text.contains("127.0.0.1:9750"), "{text}");
    }
    for wrong in ["9750", "localhost", "127.0.0.1", "127.0.0.1:99999"] {
        assert!(refuse(&[wrong]).contains("--metrics"));
    }
    assert_eq!(everything(world.folder.path()), before);
}

#[test]
fn an_address_for_others_is_served_if_it_is_allowed() {
    let mut world = World::new();
    let allowed = ["--metrics-any-address", "--socket-path", "a.sock"];
    let address = start_with_port(&mut world, "0.0.0.0:0", &allowed);
    let address = ([127, 0, 0, 1], address.port()).into();
    assert_eq!(ask(tcp(address), "GET /metrics", "").status, 200);
}
