//! Debian's packages, on machines where this process may install them.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::Result;

use crate::{Event, Listener, process};

/// True on Debian and its descendants, as root.
pub(crate) fn can_install() -> bool {
    Path::new("/usr/bin/apt-get").is_file() && is_root()
}

/// Installs `packages`, saying so first.
pub(crate) fn install(packages: &[&str], listener: &Listener<'_>) -> Result<()> {
    let notice =
        format!("installing Debian's {} (apt-get update, apt-get install)", packages.join(", "));
    listener(Event::Note(&notice));
    let apt = || {
        let mut command = Command::new("apt-get");
        command.env("DEBIAN_FRONTEND", "noninteractive");
        command
    };
    process::capture(apt().arg("update"), "apt-get update", listener)?;
    let mut command = apt();
    command.args(["install", "--yes", "--no-install-recommends"]).args(packages);
    process::capture(&mut command, "apt-get install", listener).map(|_| ())
}

fn is_root() -> bool {
    // The effective user is the second figure: "Uid:  real  effective  saved  filesystem".
    fs::read_to_string("/proc/self/status").is_ok_and(|status| {
        status
            .lines()
            .find_map(|line| line.strip_prefix("Uid:"))
            .and_then(|ids| ids.split_whitespace().nth(1))
            == Some("0")
    })
}
