//! What robots report: by a watch where they serve one, by questions where they do not.

use super::{
    answers,
    robot::{Shared, ask, client},
};
use crate::{
    adapter::{Link, Reconciled, Report, Update},
    grpc::{Channel, pb},
    ids::MissionId,
};
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::{
    sync::Notify,
    time::{sleep, sleep_until},
};
use tonic::Code;

/// The pause before a watch that ended is opened again.
const REOPEN: Duration = Duration::from_millis(200);

/// Follows the command connection: tells the engine whether the robot can be reached, and what it
/// says.
pub(super) async fn run(shared: Arc<Shared>) {
    let mut state = shared.command.state();
    let watch = Watch::default();
    let mut last: Option<Channel> = None;
    loop {
        let now = state.borrow_and_update().clone();
        match now {
            Ok(channel) => {
                let renewed = last.as_ref().is_some_and(|last| !last.is_closed());
                if !renewed {
                    watch.forget_position();
                    tell_link(&shared, Link::Up).await;
                }
                last = Some(channel.clone());
                tokio::select! {
                    () = follow(&shared, &channel, &watch) => {}
                    changed = state.changed() => if changed.is_err() { return },
                }
            }
            Err(down) => {
                last = None;
                let reason = down.to_string();
                tell_link(&shared, Link::Down { reason }).await;
                if state.changed().await.is_err() {
                    return;
                }
            }
        }
    }
}

async fn tell_link(shared: &Shared, link: Link) {
    let robot = shared.robot.clone();
    tell(shared, Update::Link { robot, link }).await;
}

async fn tell(shared: &Shared, update: Update) {
    // An engine that is gone needs no updates.
    let _ = shared.updates.send(update).await;
}

/// How the watch stands, for the questions beside it.
#[derive(Default)]
struct Watch {
    stands: AtomicBool,
    /// A watch was opened: what happened before is to be asked for.
    opened: Notify,
    /// The position of the last update; 0: none since the connection was lost.
    position: AtomicU64,
}

impl Watch {
    /// A robot that restarted may count anew, and nothing tells that from a lost connection. So
    /// only a renewal resumes by position; after a loss the open missions are asked for instead.
    fn forget_position(&self) {
        self.position.store(0, Ordering::Relaxed);
    }

    fn request(&self) -> pb::WatchMissionsRequest {
        let after_position = self.position.load(Ordering::Relaxed);
        pb::WatchMissionsRequest {
            after_position,
            from_now: after_position == 0,
            ..Default::default()
        }
    }
}

async fn follow(shared: &Shared, channel: &Channel, watch: &Watch) {
    watch.stands.store(false, Ordering::Relaxed);
    tokio::join!(
        keep_watch(shared, channel, watch),
        ask_questions(shared, channel, watch)
    );
}

async fn keep_watch(shared: &Shared, channel: &Channel, watch: &Watch) {
    loop {
        match client(channel.clone())
            .watch_missions(watch.request())
            .await
        {
            Ok(answer) => {
                watch.stands.store(true, Ordering::Relaxed);
                watch.opened.notify_one();
                let mut updates = answer.into_inner();
                while let Ok(Some(update)) = updates.message().await {
                    take_update(shared, watch, &update).await;
                }
                watch.stands.store(false, Ordering::Relaxed);
            }
            Err(status) if status.code() == Code::Unimplemented => return,
            Err(status) => {
                tracing::debug!(robot = %shared.robot, code = ?status.code(), "cannot watch");
            }
        }
        sleep(REOPEN).await;
    }
}

async fn take_update(shared: &Shared, watch: &Watch, update: &pb::MissionUpdate) {
    let shares_server = |id: &str| shared.neighbours.have(id);
    match answers::report_of_update(&shared.robot, shares_server, update) {
        Ok(Some(report)) => tell_report(shared, report).await,
        Ok(None) => {}
        Err(disbelieved) => tell(shared, Update::Disbelieved(disbelieved)).await,
    }
    // Only now: this task may be dropped while it waits for the engine.
    if update.position > 0 {
        watch.position.store(update.position, Ordering::Relaxed);
    }
}

/// Asks for the open missions: all of them whenever something may have been missed, each from
/// time to time, often while no watch stands.
async fn ask_questions(shared: &Shared, channel: &Channel, watch: &Watch) {
    ask_all(shared, channel).await;
    loop {
        let due = shared.open.next_due(watch.stands.load(Ordering::Relaxed));
        let wait = async {
            match due {
                Some((at, mission)) => {
                    sleep_until(at).await;
                    mission
                }
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = watch.opened.notified() => ask_all(shared, channel).await,
            () = shared.open.added.notified() => {}
            mission = wait => question(shared, channel, &mission).await,
        }
    }
}

async fn ask_all(shared: &Shared, channel: &Channel) {
    for mission in shared.open.all() {
        question(shared, channel, &mission).await;
    }
}

async fn question(shared: &Shared, channel: &Channel, mission: &MissionId) {
    shared.open.asked(mission);
    let before = shared.open.last(mission);
    let answer = ask(shared, mission, channel.clone()).await;
    let overtaken = shared.open.last(mission) != before;
    if let Ok(Reconciled::Known(report)) = answer
        && !overtaken
        && shared.open.is_news(&report)
    {
        tell_report(shared, report).await;
    }
}

async fn tell_report(shared: &Shared, report: Report) {
    tell(shared, Update::Report(report.clone())).await;
    shared.open.note(&report);
}
