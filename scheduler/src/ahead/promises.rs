//! Promises: under conservative backfill a start, once promised, is not moved to a later one for
//! the sake of others. So slots are kept from cycle to cycle, and each demand in its turn gives up
//! its own only for one that is no worse. (Planning anew each time would let an earlier demand that
//! moves forward push later ones back.)

use std::collections::BTreeMap;

use super::{Ahead, Need, Slot};
use crate::cluster::Cluster;
use crate::intern::FxSet;
use crate::spec::{Class, Demand, Time};

/// Slots promised, by the id of the (first) demand.
#[derive(Clone, Debug, Default)]
pub(crate) struct Promises {
    all: BTreeMap<u64, Promise>,
}

#[derive(Clone, Debug)]
struct Promise {
    slot: Slot,
    needs: Vec<(Class, u32, Time)>,
}

impl Promises {
    /// Reserves what was promised to demands that still wait, as far as it is still free, and
    /// forgets the rest.
    pub fn renew(&mut self, cluster: &mut Cluster, demands: &[Demand], ahead: &mut Ahead) {
        if self.all.is_empty() {
            return;
        }
        let waiting: FxSet<u64> = demands.iter().map(|d| d.id).collect();
        self.all.retain(|id, promise| {
            let needs: Vec<Need> = promise
                .needs
                .iter()
                .map(|(class, count, run_max)| Need {
                    class: cluster.class(class),
                    count: *count,
                    run_max: *run_max,
                })
                .collect();
            waiting.contains(id) && ahead.renew(cluster, &promise.slot, &needs, holder(*id))
        });
    }

    /// Takes a promise back, since its demand's turn has come.
    pub fn withdraw(&mut self, id: u64, ahead: &mut Ahead) {
        if let Some(promise) = self.all.remove(&id) {
            ahead.withdraw(&promise.slot, holder(id));
        }
    }

    /// Reserves a slot and promises it.
    pub fn give(
        &mut self,
        cluster: &Cluster,
        id: u64,
        slot: &Slot,
        needs: &[Need],
        ahead: &mut Ahead,
    ) {
        ahead.reserve(cluster, slot, needs, holder(id));
        let class = |need: &Need| cluster.classes.all[need.class as usize].class.clone();
        let promise = Promise {
            slot: slot.clone(),
            needs: needs
                .iter()
                .map(|need| (class(need), need.count, need.run_max))
                .collect(),
        };
        self.all.insert(id, promise);
    }
}

/// 0 holds what nobody takes back.
fn holder(id: u64) -> u64 {
    id.wrapping_add(1)
}
