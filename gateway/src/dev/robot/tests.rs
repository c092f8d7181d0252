//! What the core does, without a wire.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
use super::*;
use portarium_protocols::mission::{ActionType, MissionStatus as S};
use tokio::time::{Instant, sleep};

fn robot(change: impl FnOnce(&mut RobotConfig)) -> SimulatedRobot {
    let mut config = RobotConfig::new("r".parse().unwrap());
    change(&mut config);
    SimulatedRobot::new(config, Reports::new(), ExecutionLog::in_memory())
}

fn order(mission: &str, key: &str) -> Order {
    Order {
        mission: mission.parse().unwrap(),
        action_type: ActionType::ExecuteAction,
        idempotency_key: key.into(),
        duration: None,
        expires: None,
    }
}

fn of_type(action_type: ActionType, mission: &str) -> Order {
    Order {
        action_type,
        ..order(mission, "")
    }
}

fn said(robot: &SimulatedRobot, mission: &str) -> Vec<S> {
    let all = robot.reports().after(0, usize::MAX).into_iter();
    all.filter(|(_, r)| r.mission.as_str() == mission)
        .map(|(_, r)| r.status)
        .collect()
}

/// Long enough for everything that is under way; the clock of these tests does not wait.
async fn settle() {
    sleep(Duration::from_secs(60)).await;
}

const WHOLE: [S; 3] = [S::Dispatched, S::Executing, S::Succeeded];

#[tokio::test(start_paused = true)]
async fn an_idempotent_robot_executes_a_key_once_and_answers_a_repeat_with_what_became_of_it() {
    let robot = robot(|_| {});
    assert_eq!(robot.order(order("m", "k")), Answer::Accepted);
    assert_eq!(robot.order(order("m", "k")), Answer::Accepted);
    settle().await;
    robot.order(order("m", "k"));
    assert_eq!(
        said(&robot, "m"),
        [
            S::Dispatched,
            S::Executing,
            S::Executing,
            S::Succeeded,
            S::Succeeded
        ]
    );
    assert!(matches!(robot.order(order("n", "k")), Answer::Refused(_)));
    assert_eq!(said(&robot, "n"), [S::Failed]);
    assert_eq!(robot.log().executions_of("k"), 1);
    let last = robot.status(&"m".parse().unwrap()).unwrap();
    assert_eq!(last.action_execution_id, "r-1");
}

#[tokio::test(start_paused = true)]
async fn a_robot_that_is_not_idempotent_executes_whatever_arrives_each_time() {
    let robot = robot(|config| config.idempotent = false);
    robot.order(order("m", "k"));
    robot.order(order("m", "k"));
    settle().await;
    robot.order(order("m", "k"));
    settle().await;
    assert_eq!(robot.log().executions_of("k"), 3);
}

#[tokio::test(start_paused = true)]
async fn a_robot_that_lost_its_memory_executes_a_key_again_and_knows_no_mission() {
    let robot = robot(|_| {});
    robot.order(order("m", "k"));
    robot.forget();
    assert!(!robot.is_moving());
    assert!(robot.status(&"m".parse().unwrap()).is_none());
    assert!(!robot.cancel(&"m".parse().unwrap()));
    settle().await;
    assert_eq!(said(&robot, "m"), [S::Dispatched, S::Executing]);
    robot.order(order("m", "k"));
    settle().await;
    assert_eq!(robot.log().executions_of("k"), 2);
}

#[tokio::test(start_paused = true)]
async fn a_busy_robot_refuses_or_queues_as_configured() {
    let refusing = robot(|_| {});
    refusing.order(order("a", "1"));
    assert!(matches!(
        refusing.order(order("b", "2")),
        Answer::Refused(_)
    ));
    settle().await;
    assert_eq!(
        (said(&refusing, "a"), said(&refusing, "b")),
        (WHOLE.into(), vec![S::Failed])
    );

    let queueing = robot(|config| config.when_busy = WhenBusy::Queue);
    queueing.order(order("a", "1"));
    queueing.order(order("b", "2"));
    let soon = Instant::now() + Duration::from_millis(1);
    queueing.order(Order {
        expires: Some(soon),
        ..order("stale", "3")
    });
    queueing.order(order("c", "4"));
    assert!(queueing.cancel(&"c".parse().unwrap()));
    settle().await;
    assert_eq!(
        (said(&queueing, "a"), said(&queueing, "b")),
        (WHOLE.into(), WHOLE.into())
    );
    assert_eq!(said(&queueing, "stale"), [S::Dispatched, S::Failed]);
    assert_eq!(said(&queueing, "c"), [S::Dispatched, S::Cancelled]);
    let moved: Vec<_> = ["1", "2", "3", "4"]
        .map(|key| queueing.log().executions_of(key))
        .into();
    assert_eq!(moved, [1, 1, 0, 0]);
}

#[tokio::test(start_paused = true)]
async fn each_behaviour_ends_a_mission_in_its_own_way() {
    for (behaviour, expected, moved) in [
        (Behaviour::Normal, WHOLE.to_vec(), 1),
        (Behaviour::Slow, WHOLE.to_vec(), 1),
        (Behaviour::Refuse, vec![S::Failed], 0),
        (
            Behaviour::Fail,
            vec![S::Dispatched, S::Executing, S::Failed],
            1,
        ),
        (
            Behaviour::AnswerTwice,
            WHOLE.iter().flat_map(|s| [*s, *s]).collect(),
            1,
        ),
        (Behaviour::NeverAnswer, vec![], 1),
    ] {
        let robot = robot(|_| {});
        robot.set_behaviour(behaviour);
        let answer = robot.order(order("m", "k"));
        assert_eq!(
            answer == Answer::Silence,
            behaviour == Behaviour::NeverAnswer
        );
        settle().await;
        assert_eq!(said(&robot, "m"), expected, "{behaviour:?}");
        assert_eq!(robot.log().executions_of("k"), moved, "{behaviour:?}");
    }
    for (name, behaviour) in Behaviour::ALL {
        assert_eq!(name.parse(), Ok(behaviour));
    }
}

#[tokio::test(start_paused = true)]
async fn a_mission_takes_the_time_that_it_asks_for() {
    let robot = robot(|_| {});
    robot.order(Order {
        duration: Some(Duration::from_secs(7)),
        ..order("m", "k")
    });
    sleep(Duration::from_millis(6_999)).await;
    assert!(robot.is_moving());
    sleep(Duration::from_millis(2)).await;
    assert!(!robot.is_moving());
    robot.order(Order {
        duration: Some(Duration::ZERO),
        ..order("n", "l")
    });
    assert_eq!(said(&robot, "n"), WHOLE);
}

#[tokio::test(start_paused = true)]
async fn a_cancelled_mission_ends_when_the_robot_stands_still_and_one_it_does_not_know_gets_no_word()
 {
    let robot = robot(|_| {});
    robot.order(order("m", "k"));
    assert!(robot.cancel(&"m".parse().unwrap()));
    sleep(Duration::from_millis(19)).await;
    assert_eq!(said(&robot, "m"), [S::Dispatched, S::Executing]);
    settle().await;
    let cancelled = [S::Dispatched, S::Executing, S::Cancelled];
    assert_eq!(said(&robot, "m"), cancelled);
    assert!(robot.cancel(&"m".parse().unwrap()));
    assert_eq!(said(&robot, "m").len(), 4);
    assert!(!robot.cancel(&"other".parse().unwrap()));
    assert!(said(&robot, "other").is_empty());
    let events: Vec<_> = robot
        .log()
        .entries()
        .into_iter()
        .map(|e| (e.event, e.outcome))
        .collect();
    assert_eq!(
        events,
        [
            (LogEvent::MotionStart, None),
            (LogEvent::Cancel, None),
            (LogEvent::MotionEnd, Some(S::Cancelled)),
            (LogEvent::Cancel, None),
            (LogEvent::Cancel, None),
        ]
    );
}

#[tokio::test(start_paused = true)]
async fn a_stop_is_accepted_then_stationary_and_a_repeat_stops_what_moves_again() {
    let robot = robot(|_| {});
    robot.order(order("m", "k"));
    let stop = || of_type(ActionType::Stop, "s");
    assert_eq!(robot.order(stop()), Answer::Stops { stationary: false });
    assert_eq!(robot.order(stop()), Answer::Stops { stationary: false });
    settle().await;
    assert_eq!(
        said(&robot, "m"),
        [S::Dispatched, S::Executing, S::Cancelled]
    );
    assert_eq!(
        said(&robot, "s"),
        [S::Executing, S::Executing, S::Succeeded]
    );
    assert_eq!(robot.order(stop()), Answer::Stops { stationary: true });
    assert_eq!(said(&robot, "s").last(), Some(&S::Succeeded));
    // A command that the stop had overtaken, and the stop's repeat behind it.
    robot.order(order("late", "l"));
    assert_eq!(robot.order(stop()), Answer::Stops { stationary: false });
    settle().await;
    assert_eq!(said(&robot, "late").last(), Some(&S::Cancelled));
    assert_eq!(said(&robot, "s").last(), Some(&S::Succeeded));
    let standing = robot.order(of_type(ActionType::EstopRequest, "e"));
    assert_eq!(standing, Answer::Stops { stationary: true });
    assert_eq!(said(&robot, "e"), [S::Executing, S::Succeeded]);
}

#[tokio::test(start_paused = true)]
async fn a_stop_empties_the_robots_own_queue_too() {
    let robot = robot(|config| config.when_busy = WhenBusy::Queue);
    robot.order(order("a", "1"));
    robot.order(order("b", "2"));
    robot.order(of_type(ActionType::Stop, "s"));
    settle().await;
    assert_eq!(said(&robot, "b"), [S::Dispatched, S::Cancelled]);
    assert_eq!(robot.log().executions_of("2"), 0);
}

#[tokio::test(start_paused = true)]
async fn cancel_action_cancels_whatever_runs() {
    let robot = robot(|_| {});
    robot.order(order("m", "k"));
    robot.order(Order {
        idempotency_key: "c".into(),
        ..of_type(ActionType::CancelAction, "c")
    });
    settle().await;
    assert_eq!(said(&robot, "m").last(), Some(&S::Cancelled));
    assert_eq!(said(&robot, "c"), [S::Executing, S::Succeeded]);
}

#[tokio::test(start_paused = true)]
async fn a_vanished_robot_goes_on_and_says_so_when_it_is_back() {
    let robot = robot(|_| {});
    robot.order(order("m", "k"));
    robot.vanish();
    assert_eq!(robot.order(order("n", "l")), Answer::Silence);
    settle().await;
    assert_eq!(said(&robot, "m"), [S::Dispatched, S::Executing]);
    robot.come_back();
    assert_eq!(said(&robot, "m"), WHOLE);
    assert!(said(&robot, "n").is_empty());
}
