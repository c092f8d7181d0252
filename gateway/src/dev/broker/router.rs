//! Who gets what: sessions, subscriptions and retained messages, under one lock, so that a
//! subscriber sees retained and new messages of a topic in their order.

use super::{
    Limits,
    session::{Delivery, Link, Message, QueueLimits, Session, Will},
    topic::{Tree, covers},
};
use rumqttc::v5::mqttbytes::{
    QoS,
    v5::{Filter, RetainForwardRule},
};
use std::{collections::HashMap, sync::Arc, time::Duration};
use tokio::{
    sync::{Notify, oneshot},
    time::Instant,
};

struct Subscription {
    session: Arc<Session>,
    qos: QoS,
    no_local: bool,
    keep_retain: bool,
}

/// What became of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Routed {
    Delivered,
    NobodySubscribed,
    /// The queues of all who subscribed are full, or the store of retained messages is.
    Dropped,
}

/// What a client asks for when it connects.
pub(super) struct Attach<'a> {
    pub(super) client_id: &'a str,
    pub(super) clean_start: bool,
    pub(super) expiry: Duration,
    pub(super) window: usize,
    pub(super) max_packet: Option<u32>,
    pub(super) will: Option<Will>,
}

/// How a client leaves.
pub(super) struct Parting {
    pub(super) says_will: bool,
    /// How long the session is to outlive the connection, if the client changed its mind.
    pub(super) expiry: Option<Duration>,
}

/// A connection's hold on its session.
pub(super) struct Attached {
    pub(super) session: Arc<Session>,
    pub(super) number: u64,
    pub(super) resumed: bool,
    pub(super) wake: Arc<Notify>,
    /// Resolves when another connection takes the session over.
    pub(super) taken_over: oneshot::Receiver<()>,
}

pub(super) struct Router {
    limits: Limits,
    tree: Tree<Subscription>,
    sessions: HashMap<Box<str>, Arc<Session>>,
    retained: HashMap<Box<str>, Arc<Message>>,
    retained_bytes: usize,
    connections: u64,
}

impl Router {
    pub(super) fn new(limits: Limits) -> Self {
        Self {
            limits,
            tree: Tree::default(),
            sessions: HashMap::new(),
            retained: HashMap::new(),
            retained_bytes: 0,
            connections: 0,
        }
    }

    /// Gives a connection its session, taking it from an older one. `None`: too many sessions.
    pub(super) fn attach(&mut self, ask: Attach<'_>, now: Instant) -> Option<Attached> {
        let known = self.sessions.get(ask.client_id).cloned();
        if known.is_none() && self.sessions.len() >= self.limits.sessions {
            return None;
        }
        if let Some(session) = &known {
            // Dropping the link tells the older connection. Its will goes out before anything of
            // the new one, unless it was to wait for exactly this.
            let mut state = session.state();
            state.link = None;
            let due = |w: &Will| ask.clean_start || w.delay.is_zero();
            let will = state.will.take().filter(due);
            drop(state);
            self.publish_will(session, will, now);
        }
        let known = known.filter(|session| {
            let resumes = !ask.clean_start && session.state().ends.is_none_or(|at| at > now);
            if !resumes {
                self.forget(session);
            }
            resumes
        });
        let resumed = known.is_some();
        let session = known.unwrap_or_else(|| Arc::new(Session::new(ask.client_id)));
        self.sessions
            .insert(ask.client_id.into(), Arc::clone(&session));
        self.connections += 1;
        let (held, taken_over) = oneshot::channel();
        let wake = Arc::new(Notify::new());
        let mut state = session.state();
        state.expiry = ask.expiry;
        state.will = ask.will;
        state.connect(Link {
            number: self.connections,
            window: ask.window,
            max_packet: ask.max_packet,
            wake: Arc::clone(&wake),
            _taken_over: held,
        });
        drop(state);
        Some(Attached {
            session,
            number: self.connections,
            resumed,
            wake,
            taken_over,
        })
    }

    /// A connection has ended. Without effect where another has taken the session over.
    pub(super) fn detach(
        &mut self,
        session: &Arc<Session>,
        number: u64,
        parting: Parting,
        now: Instant,
    ) {
        let mut state = session.state();
        if state.link.as_ref().is_none_or(|link| link.number != number) {
            return;
        }
        state.link = None;
        state.expiry = parting.expiry.unwrap_or(state.expiry);
        state.ends = Some(now + state.expiry);
        let ended = state.expiry.is_zero();
        let mut will = state.will.take().filter(|_| parting.says_will);
        let delayed = |w: &mut Will| !ended && !w.delay.is_zero();
        if let Some(mut later) = will.take_if(delayed) {
            later.due = Some(now + later.delay);
            state.will = Some(later);
        }
        drop(state);
        self.publish_will(session, will, now);
        if ended {
            self.forget(session);
        }
    }

    /// Ends sessions whose time is over and publishes wills that are due.
    pub(super) fn sweep(&mut self, now: Instant) {
        let mut due = Vec::new();
        for session in self.sessions.values() {
            let mut state = session.state();
            let over = state.ends.is_some_and(|at| at <= now);
            let will = state
                .will
                .take_if(|w| over || w.due.is_some_and(|at| at <= now));
            if (over || will.is_some()) && state.link.is_none() {
                due.push((Arc::clone(session), will, over));
            }
        }
        for (session, will, over) in due {
            self.publish_will(&session, will, now);
            if over {
                self.forget(&session);
            }
        }
        let bytes = &mut self.retained_bytes;
        self.retained.retain(|_, message| {
            let kept = !message.expired(now);
            *bytes -= if kept { 0 } else { message.bytes() };
            kept
        });
    }

    fn publish_will(&mut self, session: &Session, will: Option<Will>, now: Instant) {
        if let Some(will) = will {
            let message = Arc::new(Message::from_will(will.will, now));
            self.publish(&session.client_id, &message);
        }
    }

    fn forget(&mut self, session: &Arc<Session>) {
        for filter in session.state().filters.drain() {
            self.tree.remove(&filter, &session.client_id);
        }
        self.sessions.remove(&session.client_id);
    }

    /// Hands a message to all who subscribed, and keeps it if it is to be retained.
    pub(super) fn publish(&mut self, from: &str, message: &Arc<Message>) -> Routed {
        let stored = !message.retain || self.retain(message);
        let mut routed = if stored {
            Routed::NobodySubscribed
        } else {
            Routed::Dropped
        };
        let mut to: Vec<(&Arc<Session>, Delivery)> = Vec::new();
        self.tree.find(message.name(), &mut |subscription| {
            if !(subscription.no_local && *subscription.session.client_id == *from) {
                let delivery = Delivery {
                    message: Arc::clone(message),
                    qos: lower(message.qos, subscription.qos),
                    retain: message.retain && subscription.keep_retain,
                };
                to.push((&subscription.session, delivery));
            }
        });
        // One copy for each client, also where several of its filters match: the one of the
        // highest QoS.
        to.sort_by_key(|(s, d)| (Arc::as_ptr(s), d.qos == QoS::AtMostOnce));
        to.dedup_by_key(|(s, _)| Arc::as_ptr(s));
        for (session, delivery) in to {
            let kept = push(session, delivery, self.limits.queue());
            // A refusal says that nobody gets it, and may be followed by another attempt.
            routed = match (kept, routed) {
                (true, _) if stored => Routed::Delivered,
                (false, Routed::NobodySubscribed) => Routed::Dropped,
                _ => routed,
            };
        }
        routed
    }

    fn retain(&mut self, message: &Arc<Message>) -> bool {
        let name = message.name();
        if let Some(older) = self.retained.remove(name) {
            self.retained_bytes -= older.bytes();
        }
        if message.clears() {
            return true;
        }
        if self.retained.len() >= self.limits.retained
            || self.retained_bytes + message.bytes() > self.limits.retained_bytes
        {
            tracing::warn!(topic = name, "retained message dropped: there are too many");
            return false;
        }
        self.retained_bytes += message.bytes();
        self.retained.insert(name.into(), Arc::clone(message));
        true
    }

    /// Adds a subscription and delivers what is retained. `None`: the client has too many.
    pub(super) fn subscribe(
        &mut self,
        session: &Arc<Session>,
        filter: &Filter,
        now: Instant,
    ) -> Option<QoS> {
        let qos = lower(filter.qos, QoS::AtLeastOnce);
        {
            let mut state = session.state();
            let known = state.filters.contains(&*filter.path);
            if !known && state.filters.len() >= self.limits.subscriptions {
                return None;
            }
            state.filters.insert(filter.path.as_str().into());
        }
        let subscription = Subscription {
            session: Arc::clone(session),
            qos,
            no_local: filter.nolocal,
            keep_retain: filter.preserve_retain,
        };
        let new = self
            .tree
            .insert(&filter.path, &session.client_id, subscription);
        let wanted = match filter.retain_forward_rule {
            RetainForwardRule::OnEverySubscribe => true,
            RetainForwardRule::OnNewSubscribe => new,
            RetainForwardRule::Never => false,
        };
        if wanted {
            for (name, message) in &self.retained {
                if covers(&filter.path, name) && !message.expired(now) {
                    let message = Arc::clone(message);
                    let qos = lower(message.qos, qos);
                    push(
                        session,
                        Delivery {
                            message,
                            qos,
                            retain: true,
                        },
                        self.limits.queue(),
                    );
                }
            }
        }
        Some(qos)
    }

    /// Ends a subscription; false if there was none.
    pub(super) fn unsubscribe(&mut self, session: &Session, filter: &str) -> bool {
        session.state().filters.remove(filter);
        self.tree.remove(filter, &session.client_id).is_some()
    }
}

fn lower(a: QoS, b: QoS) -> QoS {
    if a < b { a } else { b }
}

fn push(session: &Session, delivery: Delivery, limits: QueueLimits) -> bool {
    let kept = session.state().push(delivery, limits);
    if !kept {
        tracing::warn!(client_id = %session.client_id, "message dropped: the client's queue is full");
    }
    kept
}
