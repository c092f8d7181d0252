//! Registration entries.

use super::Spire;
use crate::until;
use serde_json::{Value, json};
use std::time::Duration;

/// A registration entry. Its id is its hint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Registration {
    /// The full SPIFFE ID.
    pub spiffe_id: String,
    /// The hint.
    pub hint: String,
    /// DNS names; the first becomes the CN.
    pub dns_names: Vec<String>,
    /// How long its SVIDs live.
    pub ttl: Duration,
    /// Trust domains whose bundles come with it.
    pub federates_with: Vec<String>,
}

impl Spire {
    /// Has these entries in place of those that were there, and waits until the agent serves them.
    pub async fn register(&self, entries: Vec<Registration>) {
        let before = std::mem::replace(&mut self.running().entries, entries.clone());
        self.delete(before.iter().filter(|entry| !entries.contains(entry)))
            .await;
        let stay = |hint: &str| before.iter().any(|b| b.hint == hint && entries.contains(b));
        until("the agent to forget entries", async || {
            let hints = self.hints().await;
            hints.is_some_and(|hints| hints.iter().all(|hint| stay(hint)))
        })
        .await;
        self.create(entries.iter().filter(|entry| !before.contains(entry)))
            .await;
        until("the agent to serve all entries", async || {
            let hints = self.hints().await;
            hints.is_some_and(|hints| hints.len() == entries.len())
        })
        .await;
    }

    /// Changes an entry in place, without waiting for the agent.
    pub async fn update(&self, entry: &Registration) {
        {
            let mut running = self.running();
            let mut all = running.entries.iter_mut();
            let known = all.find(|known| known.hint == entry.hint).unwrap();
            *known = entry.clone();
        }
        let data = self.described([entry].into_iter());
        self.server_told(&["entry", "update", "-data", "-"], data)
            .await;
    }

    /// Adds entries without waiting for anything but the server's word.
    async fn create(&self, entries: impl Iterator<Item = &Registration>) {
        let mut entries = entries.peekable();
        if entries.peek().is_some() {
            let data = self.described(entries);
            self.server_told(&["entry", "create", "-data", "-"], data)
                .await;
        }
    }

    /// As the server takes entries.
    fn described<'a>(&self, entries: impl Iterator<Item = &'a Registration>) -> String {
        let parent = self.running().parent.clone();
        let uid = rustix::process::getuid().as_raw();
        let entries: Vec<Value> = entries
            .map(|entry| {
                json!({
                    "entry_id": entry.hint,
                    "parent_id": parent,
                    "spiffe_id": entry.spiffe_id,
                    "selectors": [{"type": "unix", "value": format!("uid:{uid}")}],
                    "hint": entry.hint,
                    "dns_names": entry.dns_names,
                    "x509_svid_ttl": entry.ttl.as_secs(),
                    "federates_with": entry.federates_with,
                })
            })
            .collect();
        json!({ "entries": entries }).to_string()
    }

    async fn delete(&self, entries: impl Iterator<Item = &Registration>) {
        let ids: Vec<_> = entries.map(|entry| entry.hint.as_str()).collect();
        if !ids.is_empty() {
            let data = json!({ "ids": ids }).to_string();
            self.server_told(&["entry", "delete", "-file", "-"], data)
                .await;
        }
    }

    /// The hints that are served in the order in which they are, none where access is denied.
    pub async fn hints(&self) -> Option<Vec<String>> {
        match self.fetch().await {
            Ok(context) => {
                let hints = context.svids().iter().map(|svid| svid.hint());
                Some(hints.map(|h| h.unwrap_or_default().to_owned()).collect())
            }
            Err(error) if error.contains("no identity issued") => Some(Vec::new()),
            Err(_) => None,
        }
    }
}
