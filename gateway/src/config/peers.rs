//! Who may be on the other end, and the rules of who may do what.

use super::{ConfigError, Development, parse::choice, raw, robots, source::Source};
use crate::policy::{Actions, Method, Policy, Rule, Selection};
use portarium_identity::{PeerPolicy, SpiffeIdPattern};
use portarium_protocols::mission::ActionType;
use std::{fmt::Display, hash::Hash, str::FromStr};

/// A value that has to be there.
pub(super) fn required<T>(source: &Source, key: &str, value: Option<T>) -> Result<T, ConfigError> {
    value.ok_or_else(|| source.error(key, "missing; add it"))
}

/// The `peers` of a broker or a robot. In development nobody is asked who they are; a policy
/// without patterns then admits nobody, should anyone ask all the same.
pub(super) fn peer_policy(
    source: &Source,
    key: &str,
    peers: Option<Vec<raw::Text>>,
    development: Option<Development>,
) -> Result<PeerPolicy, ConfigError> {
    let peers = if development.is_some() {
        peers.unwrap_or_default()
    } else {
        list(source, key, peers)?
    };
    Ok(PeerPolicy::new(patterns(source, key, peers)?))
}

/// All rules. Without one nobody could call, which is allowed in development only.
pub(super) fn policy(
    source: &Source,
    rules: Vec<raw::RawRule>,
    development: Option<Development>,
) -> Result<Policy, ConfigError> {
    if rules.is_empty() && development.is_none() {
        let problem = "missing; add a section [[policy]], since nobody may call without a rule";
        return Err(source.error("policy", problem));
    }
    let rules = rules.into_iter().enumerate();
    let rules: Result<_, _> = rules.map(|(i, raw)| rule(source, i, raw)).collect();
    Ok(Policy::new(rules?))
}

fn rule(source: &Source, index: usize, raw: raw::RawRule) -> Result<Rule, ConfigError> {
    let key = |key: &str| format!("policy[{index}].{key}");
    let methods = methods(source, &key("methods"), raw.methods)?;
    let actions = match raw.actions {
        None if !methods.iter().any(|method| method.carries_action()) => Actions::None,
        actions => self::actions(source, &key("actions"), actions)?,
    };
    let peers = list(source, &key("peers"), raw.peers)?;
    Ok(Rule {
        peers: patterns(source, &key("peers"), peers)?,
        methods: methods.into_iter().collect(),
        robots: selection(source, &key("robots"), raw.robots)?,
        fleets: selection(source, &key("fleets"), raw.fleets)?,
        actions,
    })
}

fn list(
    source: &Source,
    key: &str,
    texts: Option<Vec<raw::Text>>,
) -> Result<Vec<raw::Text>, ConfigError> {
    let texts = required(source, key, texts)?;
    if texts.is_empty() {
        return Err(source.error(key, "is empty; write at least one entry"));
    }
    Ok(texts)
}

pub(super) fn patterns(
    source: &Source,
    key: &str,
    texts: Vec<raw::Text>,
) -> Result<Vec<SpiffeIdPattern>, ConfigError> {
    let pattern = |(i, raw::Text(text)): (usize, raw::Text)| {
        robots::parsed(source, &format!("{key}[{i}]"), &text)
    };
    texts.into_iter().enumerate().map(pattern).collect()
}

pub(super) fn methods(
    source: &Source,
    key: &str,
    texts: Option<Vec<raw::Text>>,
) -> Result<Vec<Method>, ConfigError> {
    let known = Method::ALL.map(|method| (method.as_str(), method));
    let method = |(i, raw::Text(text)): (usize, raw::Text)| {
        choice(source, &format!("{key}[{i}]"), &text, &known)
    };
    list(source, key, texts)?
        .into_iter()
        .enumerate()
        .map(method)
        .collect()
}

fn selection<T>(
    source: &Source,
    key: &str,
    texts: Option<Vec<raw::Text>>,
) -> Result<Selection<T>, ConfigError>
where
    T: FromStr<Err: Display> + Eq + Hash,
{
    let Some(texts) = texts else {
        return Err(source.error(key, "missing; add it, [\"*\"] for all"));
    };
    if texts.is_empty() {
        return Err(source.error(key, "is empty; write [\"*\"] for all"));
    }
    if texts.iter().any(|raw::Text(text)| text == "*") {
        return Ok(Selection::All);
    }
    let entry = |(i, raw::Text(text)): (usize, raw::Text)| {
        robots::parsed(source, &format!("{key}[{i}]"), &text)
    };
    let only: Result<_, _> = texts.into_iter().enumerate().map(entry).collect();
    Ok(Selection::Only(only?))
}

fn actions(
    source: &Source,
    key: &str,
    texts: Option<Vec<raw::Text>>,
) -> Result<Actions, ConfigError> {
    let types = [
        ActionType::CancelAction,
        ActionType::Stop,
        ActionType::EstopRequest,
    ];
    let types = types.map(|kind| (kind.as_str(), kind));
    let texts = list(source, key, texts)?;
    if texts.iter().any(|raw::Text(text)| text == "*") {
        return Ok(Actions::All);
    }
    let (mut kinds, mut names) = (Vec::new(), std::collections::HashSet::new());
    for (i, raw::Text(text)) in texts.into_iter().enumerate() {
        let key = format!("{key}[{i}]");
        if text.starts_with("robot:") {
            kinds.push(choice(source, &key, &text, &types)?);
        } else {
            robots::action_name(&text).map_err(|problem| source.error(&key, problem))?;
            names.insert(text);
        }
    }
    Ok(Actions::Only { kinds, names })
}
