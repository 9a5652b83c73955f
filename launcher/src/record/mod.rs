//! What a run directory records: events, provenance, metrics, the table of ranks, completion. The
//! supervisor writes it; the report and the commands read it.

pub(crate) mod comparison;
pub(crate) mod completion;
pub(crate) mod events;
pub(crate) mod fingerprints;
pub(crate) mod history;
pub(crate) mod live;
pub(crate) mod paper;
pub(crate) mod provenance;
pub(crate) mod rates;
pub(crate) mod shards;
pub(crate) mod stragglers;
pub(crate) mod table;
pub(crate) mod tail;
