//! Hours of missions with faults throughout: whatever the gateway holds stays what it was.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

use portarium_gateway::dev::robot::{ExecutionLog, RobotConfig, mqtt::StatusTopics};
use portarium_tests::{
    Agent, Caller, Config, Fate, GatewayProcess, INSISTENCE, Identities, Load, Mosquitto, Operator,
    Proxy, SimRobot, Vitals, Watch, fates, figure, free_port, grpc_robot, hints, init, long,
    mission, mqtt_robot, rise, stop, until,
};
use rustix::process::Signal;
use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};
use tokio::{
    net::TcpStream,
    time::{interval, sleep},
};

/// `k` is killed, the others are not.
const ROBOTS: [&str; 3] = ["m", "g", "k"];
const SHORT: Duration = Duration::from_millis(40);
/// What is kept of finished missions; less than what comes in the warm-up.
const KEPT: usize = 300;
/// The gateway copies its log into the file beyond this size, and uses it again.
const LOG: u64 = 16 << 20;

/// The most that may have been added from the first to the last minute, whatever the length.
const MEMORY_KIB: f64 = 8.0 * 1024.0;
const FILES: f64 = 8.0;
const THREADS: f64 = 4.0;
const JOURNAL_KIB: f64 = 4.0 * 1024.0;
/// The log goes up and down; it is cut at 64 MiB, when the writer comes to it.
const LOG_KIB: f64 = 96.0 * 1024.0;

/// Large missions, until the journal's log is as large as it gets.
async fn warm_up(caller: &Caller, journal: &Path) {
    let log = format!("{}-wal", journal.display());
    let text: String = (0..15_000).map(|_| fastrand::alphanumeric()).collect();
    for n in 0.. {
        if n > KEPT && fs::metadata(&log).unwrap().len() > LOG + (1 << 20) {
            return;
        }
        let mut request = mission("g", &format!("warm-{n}"), Duration::from_millis(1));
        let parameters = request.parameters.get_or_insert_default();
        for name in ["where", "what", "why", "how"] {
            parameters.fields.insert(name.into(), text.clone());
        }
        caller.insist(&request, INSISTENCE).await;
    }
}

/// A look each second.
async fn look(pid: u32, journal: &Path, seen: &Mutex<Vec<Vitals>>) {
    let mut ticks = interval(Duration::from_secs(1));
    loop {
        ticks.tick().await;
        seen.lock().unwrap().push(Vitals::of(pid, journal));
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs mosquitto: run by tests/run"]
async fn hours_of_missions_and_faults_leave_memory_files_threads_and_journal_as_they_were() {
    init();
    let time = Duration::from_secs(if long() { 2 * 3600 } else { 180 });
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let identities = Identities::start(dir, &ROBOTS).await;
    let mut agent = Agent::start(dir);
    let broker = Mosquitto::start(dir, &identities).await;
    let ends = [
        identities.manager(hints::GATEWAY).await,
        identities.manager(hints::BROKER).await,
    ];
    let line = Proxy::start(broker.port, ends).await;
    let log = ExecutionLog::in_memory();
    let robot = |id: &str| RobotConfig::new(id.parse().unwrap());
    let own = StatusTopics::Own;
    let _m = mqtt_robot(&identities, broker.port, own, robot("m"), &log).await;
    let g = grpc_robot(&identities, robot("g"), &log).await;
    let k_port = free_port();
    let mut k = SimRobot::grpc(dir, &identities, k_port, "k", &["--idempotent"]).await;
    let k_log = k.log_reader();
    let lines = "redelivery = \"idempotent\"";
    let config = Config::new(dir, &identities)
        .broker("main", line.port)
        .mqtt_robot("m", lines)
        .grpc_robot("g", g.local_addr().port(), lines)
        .grpc_robot("k", k_port, "");
    let mut prefix = agent.prefix();
    prefix.push(format!("PORTARIUM__JOURNAL__KEEP_FINISHED_AT_MOST={KEPT}").into());
    let gateway = GatewayProcess::start_behind(prefix, dir, &config).await;
    let north = gateway.ports.grpc;
    let caller = Arc::new(Caller::control_plane(&identities, north).await);
    caller.robots_reachable(&ROBOTS).await;
    let journal = gateway.journal_file();
    warm_up(&caller, &journal).await;
    let watch = Watch::start(caller.clone());
    let operator = Caller::with(&identities, hints::OPERATOR, north).await;
    let operator = Operator::looking(operator, &ROBOTS, {
        let (log, k_log) = (log.clone(), k_log.clone());
        move || [log.entries(), k_log()].concat()
    });

    let mut load = Load::start(&caller, &ROBOTS, SHORT);
    let seen = Arc::new(Mutex::new(Vec::new()));
    let looking = tokio::spawn({
        let (seen, pid) = (seen.clone(), gateway.pid());
        async move { look(pid, &journal, &seen).await }
    });
    let began = Instant::now();
    let mut faults: BTreeMap<&str, usize> = BTreeMap::new();
    let some = |from: u64, to: u64| sleep(Duration::from_millis(fastrand::u64(from..to)));
    for n in 0.. {
        if began.elapsed() > time {
            break;
        }
        some(500, 2_500).await;
        let fault = match n % 8 {
            0 => {
                broker.kill();
                some(0, 1_500).await;
                broker.restart().await;
                "broker killed"
            }
            1 => {
                k.kill();
                some(0, 1_500).await;
                k.restart().await;
                "robot killed"
            }
            2 => {
                agent.replace();
                "agent restarted"
            }
            3 => {
                agent.hang();
                some(1_000, 4_000).await;
                agent.go_on();
                "agent hung"
            }
            4 => {
                line.freeze();
                some(500, 4_000).await;
                line.thaw();
                "line to the broker dead"
            }
            5 => {
                gateway.signal(Signal::STOP);
                some(200, 1_500).await;
                gateway.signal(Signal::CONT);
                "gateway halted"
            }
            6 => {
                gateway.signal(Signal::HUP);
                for robot in ["m", "g"] {
                    let request = stop(robot, &format!("stop-{n}-{robot}"));
                    // On a connection that has just ended it is not heard; that is no matter here.
                    let _ = caller.dispatch(&request).await;
                }
                "stops and a reload"
            }
            _ => {
                for _ in 0..20 {
                    let _ = TcpStream::connect(("127.0.0.1", north)).await;
                }
                let newcomer = Caller::control_plane(&identities, north).await;
                let _ = newcomer.robot("g").await;
                "callers come and go"
            }
        };
        *faults.entry(fault).or_default() += 1;
    }
    caller.robots_reachable(&ROBOTS).await;
    let names: Vec<_> = load.finish().await.into_keys().collect();
    watch.ended(&names, INSISTENCE).await;
    looking.abort();

    let done = [log.entries(), k_log()].concat();
    let verdict = fates(&names, &done, &watch.all());
    figure(
        "soak",
        &format!(
            "{} s, {faults:?}: {} missions acknowledged: {}; {} of unknown outcome",
            time.as_secs(),
            names.len(),
            verdict,
            operator.resolved().len()
        ),
    );
    let seen = seen.lock().unwrap().clone();
    // What is made once (threads, pools, maps) is made in the first fifth.
    let settled = &seen[seen.len() / 5..];
    let mut grown = Vec::new();
    let of = |read: fn(&Vitals) -> f64| settled.iter().map(read).collect::<Vec<f64>>();
    for (what, values, bound) in [
        ("memory, KiB", of(|v| v.memory), MEMORY_KIB),
        ("files", of(|v| v.files), FILES),
        ("threads", of(|v| v.threads), THREADS),
        ("journal, KiB", of(|v| v.journal), JOURNAL_KIB),
    ] {
        let (rise, hours) = (rise(&values), values.len() as f64 / 3600.0);
        let most = values.iter().copied().fold(0.0, f64::max);
        figure(
            "soak",
            &format!(
                "{what}: {:.0} at first, {:.0} at last, at most {most:.0}; the line through {} looks rises by {rise:.1} ({:.1} an hour); bound {bound:.0}",
                values[0],
                values[values.len() - 1],
                values.len(),
                rise / hours
            ),
        );
        if rise > bound {
            grown.push(format!("{what} rose by {rise:.1}"));
        }
    }
    let log = seen.iter().map(|v| v.log).fold(0.0, f64::max);
    figure(
        "soak",
        &format!("the journal's log, KiB: at most {log:.0}; bound {LOG_KIB:.0}"),
    );
    verdict.assert_good();
    assert!(log < LOG_KIB, "{log}");
    let of_k = names.iter().filter(|name| name.starts_with('k')).count();
    assert!(
        verdict.count(Fate::Done) + of_k > names.len() * 9 / 10,
        "{verdict:?}"
    );
    until("an answer", async || caller.robot("g").await.is_ok()).await;
    assert!(grown.is_empty(), "{grown:?}");
}
