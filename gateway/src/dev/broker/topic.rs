//! Topic names and filters: what is valid, what matches, and the tree that finds the subscribers.
//!
//! The client library's helpers are not used here: its `matches` slices the first byte of a topic
//! and so panics on one that begins with a longer character.

use std::collections::HashMap;

/// Bounds that keep a hostile name from costing much: long enough for a tenant, a robot and a
/// mission of the longest kind in one topic.
const MAX_BYTES: usize = 1024;
const MAX_LEVELS: usize = 32;

fn bounded(text: &str) -> bool {
    (1..=MAX_BYTES).contains(&text.len())
        && !text.contains('\0')
        && text.split('/').count() <= MAX_LEVELS
}

/// Whether something may be published to it. Names that begin with `$` are the broker's own, and
/// this one has none.
pub(super) fn valid_name(text: &str) -> bool {
    bounded(text) && !text.starts_with('$') && !text.contains(['+', '#'])
}

/// Whether it may be subscribed to: wildcards stand alone in their level, `#` in the last.
pub(super) fn valid_filter(text: &str) -> bool {
    let plain = |level: &str| level == "+" || !level.contains(['+', '#']);
    let (front, last) = match text.rsplit_once('/') {
        Some((front, last)) => (Some(front), last),
        None => (None, text),
    };
    bounded(text)
        && (last == "#" || plain(last))
        && front.is_none_or(|front| front.split('/').all(plain))
}

/// Whether all that `asked` stands for (one name, or what a filter matches) is matched by the
/// filter `allowed`.
pub(super) fn covers(allowed: &str, asked: &str) -> bool {
    let mut asked = asked.split('/');
    for level in allowed.split('/') {
        match (level, asked.next()) {
            ("#", _) => return true,
            (_, None | Some("#")) => return false,
            ("+", Some(_)) => {}
            (level, Some(asked)) if level == asked => {}
            _ => return false,
        }
    }
    asked.next().is_none()
}

/// Finds everything whose filter matches a name without looking at the others.
pub(super) struct Tree<T> {
    children: HashMap<Box<str>, Self>,
    here: HashMap<Box<str>, T>,
}

impl<T> Default for Tree<T> {
    fn default() -> Self {
        Self {
            children: HashMap::new(),
            here: HashMap::new(),
        }
    }
}

impl<T> Tree<T> {
    /// Puts in, or replaces, the value of `key` under a filter; true if it was not there before.
    pub(super) fn insert(&mut self, filter: &str, key: &str, value: T) -> bool {
        let mut node = self;
        for level in filter.split('/') {
            node = node.children.entry(level.into()).or_default();
        }
        node.here.insert(key.into(), value).is_none()
    }

    /// Takes out the value of `key` under a filter, and what has become empty with it.
    pub(super) fn remove(&mut self, filter: &str, key: &str) -> Option<T> {
        let (level, rest) = match filter.split_once('/') {
            Some((level, rest)) => (level, Some(rest)),
            None => (filter, None),
        };
        let child = self.children.get_mut(level)?;
        let removed = match rest {
            Some(rest) => child.remove(rest, key),
            None => child.here.remove(key),
        };
        if child.here.is_empty() && child.children.is_empty() {
            self.children.remove(level);
        }
        removed
    }

    /// Calls `found` with each value whose filter matches the name.
    pub(super) fn find<'a>(&'a self, name: &str, found: &mut impl FnMut(&'a T)) {
        self.walk(Some(name), found);
    }

    fn walk<'a>(&'a self, name: Option<&str>, found: &mut impl FnMut(&'a T)) {
        // `a/#` matches `a` too, so this is looked at on every level and behind the last.
        if let Some(all) = self.children.get("#") {
            all.here.values().for_each(&mut *found);
        }
        let Some(name) = name else {
            self.here.values().for_each(&mut *found);
            return;
        };
        let (level, rest) = match name.split_once('/') {
            Some((level, rest)) => (level, Some(rest)),
            None => (name, None),
        };
        for child in [self.children.get(level), self.children.get("+")]
            .into_iter()
            .flatten()
        {
            child.walk(rest, found);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_matches_the_names_that_the_standard_says() {
        for (filter, name, matched) in [
            ("a/b", "a/b", true),
            ("a/b", "a/b/c", false),
            ("a/+", "a/b", true),
            ("a/+", "a", false),
            ("a/+", "a/", true),
            ("a/+/c", "a/b/c", true),
            ("+/+", "/a", true),
            ("#", "a/b/c", true),
            ("a/#", "a", true),
            ("a/#", "a/b/c", true),
            ("a/#", "ab", false),
            ("ä/+", "ä/ö", true),
        ] {
            assert_eq!(covers(filter, name), matched, "{filter} {name}");
            let mut tree = Tree::default();
            tree.insert(filter, "k", ());
            let mut found = 0;
            tree.find(name, &mut |()| found += 1);
            assert_eq!(found == 1, matched, "{filter} {name}");
        }
    }

    #[test]
    fn a_filter_wider_than_what_is_allowed_is_not_covered() {
        for (allowed, asked, covered) in [
            ("a/+", "a/b", true),
            ("a/+", "a/+", true),
            ("a/+", "a/#", false),
            ("a/+", "#", false),
            ("a/#", "a/#", true),
            ("a/#", "a/+/c", true),
            ("a/b", "a/+", false),
            ("a/b", "+/b", false),
        ] {
            assert_eq!(covers(allowed, asked), covered, "{allowed} {asked}");
        }
    }

    #[test]
    fn names_and_filters_with_misplaced_or_forbidden_characters_are_refused() {
        for bad in [
            "",
            "a/+",
            "#",
            "$SYS/x",
            "a\0",
            &"a/".repeat(40),
            &"x".repeat(2000),
        ] {
            assert!(!valid_name(bad), "{bad:?}");
        }
        for bad in ["", "a+", "a/#/b", "a/b#", "\0", &"+/".repeat(40)] {
            assert!(!valid_filter(bad), "{bad:?}");
        }
        for good in ["a", "/", "+", "#", "a/+/b/#", "ä/ö"] {
            assert!(valid_filter(good), "{good:?}");
        }
    }

    #[test]
    fn what_is_removed_leaves_nothing_behind() {
        let mut tree = Tree::default();
        assert!(tree.insert("a/b/c", "k", 1));
        assert!(!tree.insert("a/b/c", "k", 2));
        assert_eq!(tree.remove("a/b/c", "k"), Some(2));
        assert_eq!(tree.remove("a/b/c", "k"), None);
        assert!(tree.children.is_empty());
    }
}
