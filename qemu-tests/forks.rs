//! Many guests from one golden image.

use std::fs;

use crate::bench::Bench;
use crate::disk::{MIB, Sums};

#[test]
fn two_guests_on_two_forks_of_one_origin_never_meet() {
    let bench = Bench::new();
    let origin = bench.filled_disk("origin.img", 64 * MIB, 13);
    let before = Sums::of_file(&origin);
    let (a, b) = (bench.snapshot("a", "4K"), bench.snapshot("b", "16K"));
    let daemon = bench.serve(&["--snapshot", &a, "--snapshot", &b]);
    let mut guests = [
        bench.boot("a", &[bench.view("a")]),
        bench.boot("b", &[bench.view("b")]),
    ];
    for guest in &mut guests {
        guest
            .sums("/dev/vda")
            .assert_same(&before, "a fresh fork with the origin");
        guest.run("mkfs.ext4 -q -F /dev/vda && mount /dev/vda /mnt");
    }
    for (guest, name) in guests.iter_mut().zip(["a", "b"]) {
        guest.run(&format!("echo I am {name} >/mnt/name && dd if=/dev/urandom of=/mnt/{name} bs=1M count=10 conv=fsync"));
    }
    for (guest, name) in guests.iter_mut().zip(["a", "b"]) {
        let files = guest.run("cat /mnt/name; ls /mnt");
        println!(
            "fork {name} holds: {}",
            files.split_whitespace().collect::<Vec<_>>().join(" ")
        );
        assert_eq!(files, format!("I am {name}\n{name}\nlost+found\nname\n"));
        guest.run("umount /mnt && e2fsck -fn /dev/vda");
        guest.assert_no_io_error();
    }
    let forks = guests.each_mut().map(|guest| guest.sums("/dev/vda"));
    forks[0].assert_differs(&forks[1], "one fork with the other");
    for guest in guests {
        guest.quit();
    }
    daemon.terminate();
    Sums::of_file(&origin).assert_same(&before, "the origin file with what it was");

    // The forks outlive the daemon.
    let daemon = bench.serve(&[]);
    let mut guest = bench.boot("again", &[bench.view("a"), bench.view("b")]);
    guest
        .sums("/dev/vda")
        .assert_same(&forks[0], "fork a after a restart with fork a before");
    guest
        .sums("/dev/vdb")
        .assert_same(&forks[1], "fork b after a restart with fork b before");
    guest.quit();
    daemon.terminate();
}

#[test]
fn two_daemons_fork_from_one_read_only_golden_image() {
    let bench = Bench::new();
    let golden = bench.filled_disk("origin.img", 64 * MIB, 17);
    let mut permissions = fs::metadata(&golden).unwrap().permissions();
    permissions.set_readonly(true);
    fs::set_permissions(&golden, permissions).unwrap();
    let before = Sums::of_file(&golden);
    let places = [Bench::new(), Bench::new()];
    let path = golden.to_str().unwrap();
    let mut running = Vec::new();
    for (place, name) in places.iter().zip(["a", "b"]) {
        let (snapshot, state) = (place.snapshot("fork", "4K"), place.text("state"));
        let args = [
            "--origin",
            path,
            "--read-only",
            "--state",
            &state,
            "--snapshot",
            &snapshot,
        ];
        let daemon = place.serve_only(&args);
        let mut guest = place.boot("g", &[place.view("fork")]);
        guest.run(&format!("mkfs.ext4 -q -F -L {name} /dev/vda && mount /dev/vda /mnt && echo {name} >/mnt/name && sync"));
        running.push((daemon, guest, name));
    }
    for (daemon, mut guest, name) in running {
        assert_eq!(guest.run("cat /mnt/name").trim(), name);
        guest.run("umount /mnt && e2fsck -fn /dev/vda");
        guest.assert_no_io_error();
        guest.quit();
        daemon.terminate();
    }
    Sums::of_file(&golden).assert_same(&before, "the golden image with what it was");
}
