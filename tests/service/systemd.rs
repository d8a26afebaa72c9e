//! The units of the package under a real systemd.

use std::fs::{self, File};
use std::path::Path;

use super::container::{Container, Files};
use super::world::run;

const CONFIG: &str = "\
origin = \"/share/vm/disk.img\"
socket-path = \"/run/snapback/vm/disk.sock\"
control = \"/run/snapback/vm/control.sock\"
";

fn unit(name: &str) -> String {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging");
    let unit = fs::read_to_string(folder.join(name)).unwrap();
    unit.replace("/usr/bin/snapback", "/program/snapback")
}

#[test]
fn the_unit_serves_restarts_reloads_and_stops() {
    let Some(container) = Container::new(include_str!("systemd.sh")) else {
        return;
    };
    let config = container.path("config");
    for folder in [&container.share("vm"), &config] {
        fs::create_dir(folder).unwrap();
    }
    let disk = File::create(container.share("vm/disk.img")).unwrap();
    disk.set_len(4 << 20).unwrap();
    fs::write(config.join("vm.toml"), CONFIG).unwrap();
    for name in ["snapback@.service", "snapback@.socket"] {
        container.unit(name, &unit(name));
    }
    let packaging = Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging");
    for name in ["snapback.sysusers", "metrics.conf"] {
        fs::copy(packaging.join(name), container.share(name)).unwrap();
    }
    let program = assert_cmd::cargo::cargo_bin!("snapback");
    let program = program.parent().unwrap();
    let binds = [(&*config, "/etc/snapback"), (program, "/program")];
    let (_, output, error) = run(&mut container.boot(Files::Usr, &binds));
    container.passed(&(output + &error));
}
