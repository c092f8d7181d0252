//! Networks of the test's own: a namespace for the gateway, the test and its callers, and one for
//! each peer. All of it is gone when the processes in it are.

use crate::Process;
use std::{
    ffi::OsString,
    fs,
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
    /// Those of them whose peer calls another one.
    callers: Vec<usize>,
    dir: TempDir,
}

impl Network {
    /// Without peers.
    pub fn new() -> Self {
        Self {
            holders: Vec::new(),
            callers: Vec::new(),
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
        let us = format!("10.9.{number}.1");
        there(&["ip", "route", "add", "default", "via", &us]);
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

    /// As [`Self::place`], for a peer that calls another one: they have no line to each other but by
    /// way of our namespace.
    pub fn calling_place(&mut self) -> Place {
        fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap();
        self.callers.push(self.holders.len());
        self.place()
    }

    /// The line to the peers is pulled, or plugged in again.
    pub fn plug(&self, is_in: bool) {
        for number in 0..self.holders.len() {
            let how = if is_in { "up" } else { "down" };
            run("ip", &["link", "set", &format!("to{number}"), how]);
        }
    }

    /// From now on this happens to the packets of all peers, and to those between peers: it is the one
    /// that calls the other who is deaf or mute.
    pub fn peers_are(&self, fault: Option<Fault>) {
        let ours = Lost {
            from: "ip saddr 10.9.0.0/16".into(),
            to: "ip daddr 10.9.0.0/16".into(),
        };
        let line = |number| Lost {
            from: format!("iifname to{number}"),
            to: format!("oifname to{number}"),
        };
        let between: Vec<_> = self.callers.iter().map(line).collect();
        faults(&ours, &between, fault);
    }

    /// How many packets between peers were lost by the fault that there is.
    pub fn lost_between_peers(&self) -> u64 {
        let listed = output(
            "/usr/sbin/nft",
            &["list", "chain", "inet", "faults", "passing"],
        );
        let counts = listed.split("counter packets ").skip(1);
        let number = |text: &str| text.split(' ').next().and_then(|text| text.parse().ok());
        counts.map(|text| number(text).unwrap_or(0)).sum()
    }

    /// From now on this happens to the packets of who calls this port.
    pub fn callers_are(&self, port: u16, fault: Option<Fault>) {
        let callers = Lost {
            from: format!("tcp dport {port}"),
            to: format!("tcp sport {port}"),
        };
        faults(&callers, &[], fault);
    }
}

/// Which packets are lost, in the words of nftables.
struct Lost {
    /// What a peer sends.
    from: String,
    /// What is sent to it.
    to: String,
}

impl Lost {
    fn sent(&self, fault: Option<Fault>) -> String {
        let is_lost = fault.is_some_and(|fault| fault != Fault::Deaf);
        rule(&self.from, fault.filter(|_| is_lost))
    }

    fn heard(&self, fault: Option<Fault>) -> String {
        let is_lost = fault.is_some_and(|fault| fault != Fault::Mute);
        rule(&self.to, fault.filter(|_| is_lost))
    }
}

fn rule(which: &str, fault: Option<Fault>) -> String {
    match fault {
        Some(Fault::Lossy) => format!("{which} numgen random mod 100 < 20 counter drop;"),
        Some(_) => format!("{which} counter drop;"),
        None => String::new(),
    }
}

/// `ours`: what comes to this namespace or leaves it; `between`: what only passes it.
fn faults(ours: &Lost, between: &[Lost], fault: Option<Fault>) {
    let (received, sent) = (ours.sent(fault), ours.heard(fault));
    let passing = |lost: &Lost| lost.sent(fault) + &lost.heard(fault);
    let passing: String = between.iter().map(passing).collect();
    nft(&format!(
        "table inet faults\n\
         delete table inet faults\n\
         table inet faults {{\n\
         chain received {{ type filter hook input priority 0; {received} }}\n\
         chain sent {{ type filter hook output priority 0; {sent} }}\n\
         chain passing {{ type filter hook forward priority 0; {passing} }}\n\
         }}\n"
    ));
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
    output(program, arguments);
}

/// What it says, once it has gone well.
fn output(program: &str, arguments: &[&str]) -> String {
    let ran = Command::new(program).args(arguments).output().unwrap();
    assert!(
        ran.status.success(),
        "{program} {arguments:?} (networks need root): {}",
        String::from_utf8_lossy(&ran.stderr)
    );
    String::from_utf8_lossy(&ran.stdout).into_owned()
}
