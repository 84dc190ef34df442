//! The book of a Job: where each of its indexes stands. Pure.
//!
//! Every index below `n` is in exactly one place: succeeded, failed, live (its Task exists or is
//! being created), folding (its Task ended, the ledger does not show it yet), delayed (waits out a
//! back-off) or ready. An index becomes ready again only when the ledger has acknowledged the fold
//! of its last attempt, so a new leader never misses one, and attempt numbers never repeat.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use rota_api::index_set::IndexSet;
use rota_api::names::LEDGER_CHUNK;
use rota_api::{JobLedgerSpec, LedgerAttempt};

use super::fold::{End, Folded, Rules, fold};

/// One chunk of the ledger: what is written of it and what is not.
#[derive(Clone, Debug, Default)]
pub struct Chunk {
    /// resourceVersion of the object; None while there is none.
    pub version: Option<String>,
    /// A write is on its way.
    pub in_flight: bool,
    /// Node of the last attempt of finished indexes.
    last_nodes: BTreeMap<String, IndexSet>,
    /// Changed since the last write was made up.
    changed_attempts: BTreeSet<u32>,
    changed_nodes: BTreeSet<String>,
    /// Indexes folded since the last write was made up, and those in the write on its way.
    gathered: Vec<u32>,
    sent: Vec<u32>,
}

/// What to write into a chunk.
#[derive(Clone, Debug, PartialEq)]
pub struct ChunkWrite {
    /// Number of the chunk.
    pub chunk: u32,
    /// Precondition; None creates the object.
    pub version: Option<String>,
    /// Bitmaps, and the entries that changed (all of them for a create).
    pub succeeded: String,
    /// Likewise.
    pub failed: String,
    /// Entries that changed.
    pub attempts: BTreeMap<String, LedgerAttempt>,
    /// Node texts that changed; None removes.
    pub last_nodes: BTreeMap<String, Option<String>>,
}

/// What a Task that is found means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// It occupies its index.
    Occupies,
    /// Its attempt was folded already, or another Task occupies the index: it may only be removed.
    Superseded,
}

/// See the module docs.
#[derive(Clone, Debug, Default)]
pub struct Book {
    n: u32,
    succeeded: IndexSet,
    failed: IndexSet,
    attempts: BTreeMap<u32, LedgerAttempt>,
    live: IndexSet,
    folding: BTreeSet<u32>,
    delayed: BTreeMap<u32, Timestamp>,
    ready: IndexSet,
    chunks: BTreeMap<u32, Chunk>,
    /// A chunk could not be read: nothing may be decided.
    pub unreadable: bool,
}

impl Book {
    /// From the ledger as stored: `(resourceVersion, spec)` of each chunk. No index is known to be
    /// live yet: tell each Task with [`Book::found`], then [`Book::resize`].
    pub fn restore<'a>(chunks: impl Iterator<Item = (String, &'a JobLedgerSpec)>) -> Self {
        let mut book = Book::default();
        for (version, spec) in chunks {
            let number = spec.chunk.max(0) as u32;
            let base = number.saturating_mul(LEDGER_CHUNK);
            for (set, text) in [
                (&mut book.succeeded, &spec.succeeded),
                (&mut book.failed, &spec.failed),
            ] {
                match IndexSet::from_bitmap(text, base, LEDGER_CHUNK) {
                    Ok(bits) => bits.runs().for_each(|(a, b)| set.insert_range(a, b)),
                    Err(_) => book.unreadable = true,
                }
            }
            for (index, entry) in &spec.attempts {
                match index.parse() {
                    Ok(index) => {
                        book.attempts.insert(index, entry.clone());
                    }
                    Err(_) => book.unreadable = true,
                }
            }
            let last_nodes = spec.last_nodes.iter();
            let chunk = Chunk {
                version: Some(version),
                last_nodes: last_nodes
                    .filter_map(|(node, text)| Some((node.clone(), text.parse().ok()?)))
                    .collect(),
                ..Chunk::default()
            };
            book.chunks.insert(number, chunk);
        }
        book
    }

    /// A Task of this Job exists that this book did not create (a new leader looks around).
    pub fn found(&mut self, index: u32, attempt: u32) -> Found {
        let done = self.succeeded.contains(index) || self.failed.contains(index);
        if done || attempt < self.next(index) || self.live.contains(index) {
            return Found::Superseded;
        }
        if attempt > self.next(index) {
            // The ledger should know; whatever happened, numbers only go up.
            self.attempts.entry(index).or_default().next =
                i32::try_from(attempt).unwrap_or(i32::MAX);
        }
        self.ready.remove(index);
        self.delayed.remove(&index);
        self.live.insert(index);
        Found::Occupies
    }

    /// The Job now has indexes `0..n`.
    pub fn resize(&mut self, n: u32) {
        self.n = n;
        self.delayed.retain(|index, _| *index < n);
        let mut ready = IndexSet::below(n)
            .difference(&self.succeeded)
            .difference(&self.failed)
            .difference(&self.live);
        for index in &self.folding {
            ready.remove(*index);
        }
        // A back-off goes on through a restart of the leader.
        for (index, entry) in &self.attempts {
            if let Some(time) = &entry.not_before_time
                && ready.contains(*index)
            {
                self.delayed.entry(*index).or_insert(time.0);
            }
        }
        for index in self.delayed.keys() {
            ready.remove(*index);
        }
        self.ready = ready;
    }

    /// Number of the next attempt of an index.
    pub fn next(&self, index: u32) -> u32 {
        self.attempts
            .get(&index)
            .map_or(0, |a| a.next.max(0) as u32)
    }

    /// Indexes whose time has come become ready.
    pub fn wake(&mut self, now: Timestamp) -> bool {
        let due: Vec<u32> = self
            .delayed
            .iter()
            .filter(|(_, time)| **time <= now)
            .map(|(index, _)| *index)
            .collect();
        for index in &due {
            self.delayed.remove(index);
            self.ready.insert(*index);
        }
        !due.is_empty()
    }

    /// When the first back-off ends.
    pub fn next_wake(&self) -> Option<Timestamp> {
        self.delayed.values().min().copied()
    }

    /// Takes the lowest ready index: it is live now. The number is its attempt.
    pub fn take(&mut self) -> Option<(u32, u32)> {
        let index = self.ready.first()?;
        self.ready.remove(index);
        self.live.insert(index);
        Some((index, self.next(index)))
    }

    /// The Task of a taken index could not be made.
    pub fn give_back(&mut self, index: u32) {
        if self.live.remove(index) && index < self.n {
            self.ready.insert(index);
        }
    }

    /// The attempt that is about to end has saved so much more work.
    pub fn save(&mut self, index: u32, seconds: i64) {
        if seconds > 0 && self.live.contains(index) {
            let saved = &mut self.attempts.entry(index).or_default().saved_seconds;
            *saved = Some(saved.unwrap_or(0).saturating_add(seconds));
        }
    }

    /// Work that earlier attempts of an index have saved, in seconds.
    pub fn saved(&self, index: u32) -> i64 {
        let entry = self.attempts.get(&index);
        entry.and_then(|a| a.saved_seconds).unwrap_or(0)
    }

    /// The same of the index that the next Task will have.
    pub fn saved_next(&self) -> i64 {
        self.ready.first().map_or(0, |index| self.saved(index))
    }

    /// A live attempt ended. Returns the chunk to write; None when it was folded before.
    #[allow(clippy::too_many_arguments)]
    pub fn end(
        &mut self,
        rules: &Rules,
        index: u32,
        attempt: u32,
        end: End,
        restarts: u32,
        node: &str,
        now: Timestamp,
    ) -> Option<u32> {
        if attempt != self.next(index) || !self.live.remove(index) {
            return None;
        }
        self.folding.insert(index);
        let chunk_number = index / LEDGER_CHUNK;
        let chunk = self.chunks.entry(chunk_number).or_default();
        let known = self.attempts.get(&index);
        let (entry, done) = match fold(rules, known, attempt, end, restarts, now) {
            Folded::Succeeded(entry) => {
                self.succeeded.insert(index);
                (entry, true)
            }
            Folded::Failed(entry) => {
                self.failed.insert(index);
                (Some(entry), true)
            }
            Folded::Again(entry) => (Some(entry), false),
        };
        if let Some(entry) = entry {
            self.attempts.insert(index, entry);
            chunk.changed_attempts.insert(index);
        }
        if done {
            let indexes = chunk.last_nodes.entry(node.to_owned()).or_default();
            indexes.insert(index);
            chunk.changed_nodes.insert(node.to_owned());
        }
        chunk.gathered.push(index);
        Some(chunk_number)
    }

    /// Makes up the write of a chunk and marks it on its way; None if one is, or nothing changed.
    pub fn write(&mut self, number: u32) -> Option<ChunkWrite> {
        let chunk = self.chunks.get_mut(&number)?;
        if chunk.in_flight || (chunk.gathered.is_empty() && chunk.sent.is_empty()) {
            return None;
        }
        chunk.in_flight = true;
        chunk.sent.append(&mut chunk.gathered);
        let base = number * LEDGER_CHUNK;
        let entries = self.attempts.range(base..base.saturating_add(LEDGER_CHUNK));
        let whole = chunk.version.is_none();
        let text = |set: &IndexSet| set.to_text(LAST_NODES_MAX).0;
        Some(ChunkWrite {
            chunk: number,
            version: chunk.version.clone(),
            succeeded: self.succeeded.to_bitmap(base, LEDGER_CHUNK),
            failed: self.failed.to_bitmap(base, LEDGER_CHUNK),
            attempts: entries
                .filter(|(index, _)| whole || chunk.changed_attempts.contains(index))
                .map(|(index, entry)| (index.to_string(), entry.clone()))
                .collect(),
            last_nodes: chunk
                .last_nodes
                .iter()
                .filter(|(node, _)| whole || chunk.changed_nodes.contains(*node))
                .map(|(node, set)| (node.clone(), Some(text(set))))
                .collect(),
        })
    }

    /// The write of a chunk was stored. Its indexes go on: ready, delayed or done. Returns them.
    pub fn written(&mut self, number: u32, version: String) -> Vec<u32> {
        let Some(chunk) = self.chunks.get_mut(&number) else {
            return Vec::new();
        };
        chunk.in_flight = false;
        chunk.version = Some(version);
        let sent = std::mem::take(&mut chunk.sent);
        // What was folded again meanwhile is in `gathered` and keeps its marks.
        let again: BTreeSet<u32> = chunk.gathered.iter().copied().collect();
        chunk.changed_attempts.retain(|i| again.contains(i));
        if again.is_empty() {
            chunk.changed_nodes.clear();
        }
        for index in &sent {
            self.folding.remove(index);
            if self.succeeded.contains(*index) || self.failed.contains(*index) || *index >= self.n {
                continue;
            }
            match self
                .attempts
                .get(index)
                .and_then(|a| a.not_before_time.as_ref())
            {
                Some(time) => {
                    self.delayed.insert(*index, time.0);
                }
                None => {
                    self.ready.insert(*index);
                }
            }
        }
        sent
    }

    /// The write of a chunk failed, or nobody knows; it is made up again. `version` is what a look
    /// at the object showed: `Some(None)` that there is none.
    pub fn unwritten(&mut self, number: u32, version: Option<Option<String>>) {
        if let Some(chunk) = self.chunks.get_mut(&number) {
            chunk.in_flight = false;
            if let Some(version) = version {
                chunk.version = version;
            }
        }
    }

    /// Chunks that exist or may exist.
    pub fn chunk_numbers(&self) -> Vec<u32> {
        self.chunks.keys().copied().collect()
    }

    /// A chunk was deleted with its Job.
    pub fn chunk_gone(&mut self, number: u32) {
        self.chunks.remove(&number);
    }

    /// Ready indexes.
    pub fn ready(&self) -> u64 {
        self.ready.len()
    }
    /// Indexes that wait out a back-off.
    pub fn delayed(&self) -> usize {
        self.delayed.len()
    }
    /// Live indexes.
    pub fn live(&self) -> u64 {
        self.live.len()
    }
    /// Indexes of a Batch Job that are neither done nor given up.
    pub fn unfinished(&self) -> u64 {
        let done = self.succeeded.len() + self.failed.len();
        u64::from(self.n).saturating_sub(done)
    }
    /// Indexes given up.
    pub fn failed(&self) -> &IndexSet {
        &self.failed
    }
    /// Whether a write is needed or on its way.
    pub fn settled(&self) -> bool {
        self.folding.is_empty()
    }

    /// What is wrong with the book; for tests.
    pub fn check(&self) -> Vec<String> {
        let mut wrong = Vec::new();
        for index in 0..self.n {
            let done = self.succeeded.contains(index) || self.failed.contains(index);
            let folding = self.folding.contains(&index);
            let places = [
                done && !folding,
                self.live.contains(index),
                folding,
                self.delayed.contains_key(&index),
                self.ready.contains(index),
            ];
            if places.iter().filter(|p| **p).count() != 1 {
                wrong.push(format!("index {index} is in {places:?}"));
            }
        }
        if self.ready.last().is_some_and(|last| last >= self.n) {
            wrong.push("an index beyond n is ready".into());
        }
        wrong
    }
}

/// Longest text of a node's indexes in a chunk, as the schema allows.
const LAST_NODES_MAX: usize = 32_768;

#[cfg(test)]
#[path = "book_model.rs"]
mod model;
