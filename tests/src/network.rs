//! Networks of the test's own: a namespace for the gateway, the test and its callers, and one for
//! each peer. All of it is gone when the processes in it are.

use crate::Process;
use std::{
    ffi::OsString,
    io::Write as _,
    path::Path,
    process::{Command, Stdio},
};
use tempfile::TempDir;

/// Set in the test process that has a network of its own.
const INSIDE: &str = "PORTARIUM_TEST_NETWORK";

/// Where a peer runs.
#[derive(Debug, Clone)]
pub struct Place {
    /// The command that becomes a process there.
    pub prefix: Vec<OsString>,
    /// By which name it is reached from the test.
    pub host: String,
}

impl Default for Place {
    /// Beside the test.
    fn default() -> Self {
        Self {
            prefix: Vec::new(),
            host: "127.0.0.1".into(),
        }
    }
}

impl Place {
    /// Where a server there listens.
    pub(crate) fn listen(&self) -> &'static str {
        if self.prefix.is_empty() {
            "127.0.0.1"
        } else {
            "0.0.0.0"
        }
    }
}

/// Runs the test with this name again in a network of its own, and says whether this is that run.
/// Needs root.
pub fn in_a_network_of_its_own(test: &str) -> bool {
    if std::env::var_os(INSIDE).is_some() {
        run("ip", &["link", "set", "lo", "up"]);
        return true;
    }
    let ran = Command::new("unshare")
        .args(["--net", "--"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", test, "--ignored", "--nocapture"])
        .env(INSIDE, "1")
        .stderr(Stdio::inherit())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&ran.stdout);
    // It is one test, and counts as one.
    let lines = said
        .lines()
        .filter(|line| !line.starts_with("test result:"));
    lines.for_each(|line| println!("{line}"));
    assert!(ran.status.success(), "{test}: {}", ran.status);
    false
}

/// What is to go wrong with the packets of one peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// One of five packets is lost, either way.
    Lossy,
    /// What is sent to it is lost, and nobody is told.
    Deaf,
    /// What it sends is lost, and nobody is told.
    Mute,
    /// Both.
    Silent,
}

/// Peers in namespaces of their own.
pub struct Network {
    holders: Vec<Process>,
    dir: TempDir,
}

impl Network {
    /// Without peers.
    pub fn new() -> Self {
        Self {
            holders: Vec::new(),
            dir: tempfile::tempdir().unwrap(),
        }
    }

    /// Another namespace, on a line of its own to ours.
    pub fn place(&mut self) -> Place {
        let number = self.holders.len();
        let holder = Process::start(
            Path::new("unshare"),
            ["--net", "--", "sleep", "infinity"],
            &self.dir.path().join("log"),
        );
        let pid = holder.pid().to_string();
        let (ours, theirs) = (format!("to{number}"), format!("from{number}"));
        let enter = ["-t", &pid, "-n", "--"];
        let there = |words: &[&str]| run("nsenter", &[&enter, words].concat());
        // `unshare` may not have run yet; a moment later it has.
        let own = std::fs::read_link("/proc/self/ns/net").unwrap();
        while std::fs::read_link(format!("/proc/{pid}/ns/net")).is_ok_and(|net| net == own) {
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        run(
            "ip",
            &[
                "link", "add", &ours, "type", "veth", "peer", "name", &theirs, "netns", &pid,
            ],
        );
        run(
            "ip",
            &[
                "address",
                "add",
                &format!("10.9.{number}.1/24"),
                "dev",
                &ours,
            ],
        );
        run("ip", &["link", "set", &ours, "up"]);
        there(&[
            "ip",
            "address",
            "add",
            &format!("10.9.{number}.2/24"),
            "dev",
            &theirs,
        ]);
        there(&["ip", "link", "set", &theirs, "up"]);
        there(&["ip", "link", "set", "lo", "up"]);
        self.holders.push(holder);
        Place {
            prefix: ["nsenter"]
                .iter()
                .chain(&enter)
                .map(OsString::from)
                .collect(),
            host: format!("10.9.{number}.2"),
        }
    }

    /// The line to the peers is pulled, or plugged in again.
    pub fn plug(&self, is_in: bool) {
        for number in 0..self.holders.len() {
            let how = if is_in { "up" } else { "down" };
            run("ip", &["link", "set", &format!("to{number}"), how]);
        }
    }

    /// From now on this happens to the packets of all peers.
    pub fn peers_are(&self, fault: Option<Fault>) {
        Self::faults("ip saddr 10.9.0.0/16", "ip daddr 10.9.0.0/16", fault);
    }

    /// From now on this happens to the packets of who calls this port.
    pub fn callers_are(&self, port: u16, fault: Option<Fault>) {
        let from = format!("tcp dport {port}");
        let to = format!("tcp sport {port}");
        Self::faults(&from, &to, fault);
    }

    fn faults(from: &str, to: &str, fault: Option<Fault>) {
        let lost = |which: &str| match fault {
            Some(Fault::Lossy) => format!("{which} numgen random mod 100 < 20 drop"),
            Some(_) => format!("{which} drop"),
            None => String::new(),
        };
        let received = match fault {
            Some(Fault::Deaf) | None => String::new(),
            Some(_) => lost(from),
        };
        let sent = match fault {
            Some(Fault::Mute) | None => String::new(),
            Some(_) => lost(to),
        };
        nft(&format!(
            "table inet faults\n\
             delete table inet faults\n\
             table inet faults {{\n\
             chain received {{ type filter hook input priority 0; {received}; }}\n\
             chain sent {{ type filter hook output priority 0; {sent}; }}\n\
             }}\n"
        ));
    }
}

impl Default for Network {
    fn default() -> Self {
        Self::new()
    }
}

fn nft(rules: &str) {
    let mut nft = Command::new("/usr/sbin/nft")
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .spawn()
        .expect("nft is to be installed: tests/run does it");
    nft.stdin
        .take()
        .unwrap()
        .write_all(rules.as_bytes())
        .unwrap();
    assert!(nft.wait().unwrap().success(), "{rules}");
}

fn run(program: &str, arguments: &[&str]) {
    let ran = Command::new(program).args(arguments).output().unwrap();
    assert!(
        ran.status.success(),
        "{program} {arguments:?} (networks need root): {}",
        String::from_utf8_lossy(&ran.stderr)
    );
}
