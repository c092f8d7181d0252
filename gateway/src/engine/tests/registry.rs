//! Robots that come, go and move.

use super::make::{mission, spec};
use super::world::Sim;
use crate::engine::{Refusal, RegistryError};
use async_trait::async_trait;
use portarium_protocols::{
    adapter::{
        Adapter, Cancel, DispatchError, Handover, Link, Reconciled, SignalError, StopAnswer, Update,
    },
    ids::RobotId,
    mission::{Command, MissionStatus},
};
use std::{sync::Arc, time::Duration};
use tokio::{sync::mpsc, time::sleep};

fn r() -> RobotId {
    "r".parse().unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_robot_with_an_open_mission_neither_goes_nor_moves() {
    let mut sim = Sim::new().await;
    sim.dispatch("m1").await.unwrap();
    sim.specs = vec![spec("q")];
    assert!(matches!(
        sim.reload().await,
        Err(RegistryError::Busy { .. })
    ));
    let mut moved = spec("r");
    moved.address = "elsewhere".into();
    sim.specs = vec![moved];
    assert!(matches!(
        sim.reload().await,
        Err(RegistryError::Busy { .. })
    ));
    sim.say("m1", MissionStatus::Succeeded).await;
    sim.reload().await.unwrap();
    sim.dispatch("m2").await.unwrap();
    assert_eq!(sim.robots.dispatched("r"), ["m1", "m2"]);
}

#[tokio::test(start_paused = true)]
async fn what_is_changed_but_the_address_takes_effect_at_once() {
    let mut sim = Sim::new().await;
    sim.dispatch("m1").await.unwrap();
    sim.specs[0].queue = 0;
    sim.specs.push(spec("q"));
    sim.reload().await.unwrap();
    assert!(matches!(sim.dispatch("m2").await, Err(Refusal::State(_))));
    sim.ask(mission("q", "q1")).await.unwrap();
    assert_eq!(sim.robots.dispatched("q"), ["q1"]);
    sim.specs.push(spec("q"));
    assert_eq!(
        sim.reload().await,
        Err(RegistryError::Twice("q".parse().unwrap()))
    );
}

#[tokio::test(start_paused = true)]
async fn a_latch_outlives_a_robots_absence_from_the_configuration() {
    let mut sim = Sim::new().await;
    sim.estop("e1").await;
    sim.say("e1", MissionStatus::Succeeded).await;
    for crash in [false, true] {
        sim.specs = vec![spec("q")];
        sim.reload().await.unwrap();
        if crash {
            sim.crash().await;
        }
        sim.specs = vec![spec("q"), spec("r")];
        sim.reload().await.unwrap();
        assert!(sim.engine().robot(&r()).unwrap().latched);
        assert!(matches!(sim.dispatch("m1").await, Err(Refusal::State(_))));
    }
    sim.engine().release(&r()).await.unwrap();
    sim.dispatch("m2").await.unwrap();
    assert_eq!(sim.robots.dispatched("r"), ["m2"]);
}

#[tokio::test(start_paused = true)]
async fn a_robot_whose_missions_are_open_comes_back_by_a_reload() {
    let mut sim = Sim::new().await;
    sim.dispatch("m1").await.unwrap();
    sim.dispatch("m2").await.unwrap();
    sim.specs = vec![spec("q")];
    sim.crash().await;
    assert!(sim.engine().robot(&r()).unwrap().link.is_err());
    assert!(matches!(sim.dispatch("m3").await, Err(Refusal::Invalid(_))));
    // Others come and go meanwhile.
    sim.specs.push(spec("p"));
    sim.reload().await.unwrap();
    let known = super::make::report("m1", MissionStatus::Succeeded);
    let known = (Duration::ZERO, Ok(Reconciled::Known(known)));
    sim.robots.script("r", |s| s.reconcile.push_back(known));
    sim.specs.push(spec("r"));
    sim.reload().await.unwrap();
    sleep(Duration::from_secs(1)).await;
    assert_eq!(sim.status("m1").await, "Succeeded");
    assert_eq!(sim.robots.dispatched("r"), ["m1", "m2"]);
}

#[tokio::test(start_paused = true)]
async fn an_operator_ends_the_missions_of_a_robot_that_is_gone() {
    let mut sim = Sim::new().await;
    sim.dispatch("m1").await.unwrap();
    sim.dispatch("m2").await.unwrap();
    sim.specs = vec![spec("q")];
    sim.crash().await;
    sim.engine()
        .cancel(&"m2".parse().unwrap(), "")
        .await
        .unwrap();
    assert_eq!(sim.status("m2").await, "Cancelled");
    sleep(Duration::from_secs(61)).await;
    assert_eq!(sim.status("m1").await, "Dispatched?");
    let id = "m1".parse().unwrap();
    sim.engine()
        .resolve(&id, MissionStatus::Failed, "")
        .await
        .unwrap();
    sim.reload().await.unwrap();
    assert!(sim.engine().robot(&r()).is_none(), "nothing of it is left");
}

#[tokio::test(start_paused = true)]
async fn a_stop_that_never_reached_a_robot_that_is_gone_ends_by_an_operator_and_is_kept_for_its_name()
 {
    for crash in [false, true] {
        let mut sim = Sim::new().await;
        sim.link("r", false).await;
        sim.stop("s1").await;
        sim.specs = vec![spec("q")];
        assert!(matches!(
            sim.reload().await,
            Err(RegistryError::Busy { .. })
        ));
        if crash {
            sim.crash().await;
        }
        let id = "s1".parse().unwrap();
        sim.engine()
            .resolve(&id, MissionStatus::Failed, "scrapped")
            .await
            .unwrap();
        sim.reload().await.unwrap();
        assert!(sim.engine().robot(&r()).is_none());
        assert_eq!(sim.status("s1").await, "Failed");
        // Whoever bears its name is stopped first.
        let before = sim.robots.stopped("r").len();
        sim.robots.set_down("r", false);
        sim.specs.push(spec("r"));
        sim.reload().await.unwrap();
        assert_eq!(sim.robots.stopped("r").len(), before + 1, "crash: {crash}");
        sim.dispatch("m1").await.unwrap();
        assert_eq!(sim.robots.dispatched("r"), ["m1"]);
    }
}

#[tokio::test(start_paused = true)]
async fn robots_that_are_gone_leave_no_task_behind() {
    let mut sim = Sim::new().await;
    let before = sim.tasks();
    for n in 0..20 {
        sim.specs = vec![spec("r"), spec(&format!("q{n}"))];
        sim.reload().await.unwrap();
        sleep(Duration::from_millis(5)).await;
    }
    assert!(sim.tasks() <= before + 1, "{} tasks", sim.tasks());
    sim.dispatch("m1").await.unwrap();
    sim.close().await;
}

#[tokio::test(start_paused = true)]
async fn who_had_the_robot_in_hand_during_a_reload_gets_the_one_that_is_there_now() {
    let mut sim = Sim::new().await;
    let old = sim.engine().inner.robot(&r()).unwrap();
    let mut moved = spec("r");
    moved.address = "elsewhere".into();
    sim.specs = vec![moved];
    sim.reload().await.unwrap();
    assert!(old.lock().retired);
    sim.dispatch("m1").await.unwrap();
    sim.estop("e1").await;
    assert_eq!(old.lock().open.len(), 0);
    assert!(sim.engine().robot(&r()).unwrap().latched);
}

/// Connects in the very moment in which it is asked whether it is connected.
struct JustConnecting(mpsc::Sender<Update>);

#[async_trait]
impl Adapter for JustConnecting {
    async fn dispatch(&self, _: Arc<Command>, _: Duration) -> Result<Handover, DispatchError> {
        Ok(Handover::Accepted)
    }
    async fn cancel(&self, _: Arc<Cancel>) -> Result<(), SignalError> {
        Ok(())
    }
    async fn stop(&self, _: Arc<Command>) -> Result<StopAnswer, SignalError> {
        Ok(StopAnswer::Accepted)
    }
    async fn stops_landed(&self, _: &RobotId) {}
    async fn reconcile(&self, _: Arc<Command>) -> Result<Reconciled, SignalError> {
        Ok(Reconciled::CannotAsk)
    }
    fn settle(&self, _: &Command) {}
    fn link(&self, robot: &RobotId) -> Link {
        let (robot, link) = (robot.clone(), Link::Up);
        self.0.try_send(Update::Link { robot, link }).unwrap();
        // The engine has the news before it knows the robot.
        std::thread::sleep(Duration::from_millis(100));
        Link::Down {
            reason: "not connected yet".into(),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_robot_that_connects_while_it_comes_into_the_registry_is_not_taken_for_down() {
    let sim = Sim::new().await;
    let mut new = spec("q");
    new.adapter = Some(Arc::new(JustConnecting(sim.updates())));
    let (engine, q) = (sim.engine(), "q".parse().unwrap());
    let replaced = tokio::task::spawn_blocking(move || engine.replace_robots(vec![new]));
    replaced.await.unwrap().unwrap();
    let up = async {
        while sim.engine().robot(&q).unwrap().link.is_err() {
            sleep(Duration::from_millis(1)).await;
        }
    };
    let up = tokio::time::timeout(Duration::from_secs(5), up).await;
    assert!(up.is_ok(), "it is down until its link changes again");
}
