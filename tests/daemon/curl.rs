//! The control socket speaks plain HTTP.

use super::*;

#[test]
fn curl_can_talk_to_the_control_socket() {
    let mut world = World::new();
    world.start(&["--socket-path", "a.sock"]);
    let curl = |arguments: &[&str]| {
        let mut command = Command::new("curl");
        command
            .args(["-sS", "--unix-socket"])
            .arg(world.path("c.sock"))
            .args(["-w", "%{http_code}"])
            .args(arguments);
        let answer = command.output().ok()?;
        Some(String::from_utf8(answer.stdout).unwrap())
    };
    let Some(status) = curl(&["http://localhost/v1/status"]) else {
        eprintln!("skipped: no curl on this machine");
        return;
    };
    let path = world.path("disk.img");
    let begins = format!("{{\"origin\":{{\"path\":\"{}\"", path.display());
    assert!(status.starts_with(&begins), "{status}");
    assert!(status.ends_with("200"), "{status}");
    let cow = world.path("s9.cow");
    let body = format!("{{\"cow\":\"{}\",\"size\":8388608}}", cow.display());
    let at = "http://localhost/v1/snapshots/s9";
    let taken = curl(&["-X", "PUT", "-d", &body, at]);
    assert_eq!(taken.as_deref(), Some("204"));
    let names = |world: &World| {
        let snapshots = world.client().status().unwrap().snapshots;
        snapshots.into_iter().map(|s| s.name).collect::<Vec<_>>()
    };
    assert_eq!(names(&world), ["s9"]);
    let again = curl(&["-X", "PUT", "-d", &body, at]).unwrap();
    assert!(again.ends_with("409"), "{again}");
    assert_eq!(curl(&["-X", "DELETE", at]).as_deref(), Some("204"));
    assert_eq!(names(&world), Vec::<String>::new());
}
