//! All controllers of this process: one line each.

use std::future::Future;
use std::pin::Pin;

use crate::gc::Collector;
use crate::job::JobController;
use crate::namespace::NamespaceController;
use crate::node::NodeController;
use crate::runtime::{Context, Controller, Failure, Informers, controller};

type Run = fn(Context) -> Pin<Box<dyn Future<Output = Result<(), Failure>> + Send>>;

/// How to run one controller.
#[derive(Clone)]
pub struct Entry {
    /// Name: of its Lease and its user (`rota:<name>`).
    pub name: &'static str,
    /// Starts the informers that it will need.
    pub warm: fn(&Informers),
    /// Runs it for one term.
    pub run: Run,
}

/// A controller that looks at one key at a time.
pub fn keyed<C: Controller>() -> Entry {
    Entry {
        name: C::NAME,
        warm: C::warm,
        run: |ctx| Box::pin(controller::run::<C>(ctx)),
    }
}

/// All controllers.
pub fn all() -> Vec<Entry> {
    vec![
        keyed::<JobController>(),
        keyed::<NodeController>(),
        keyed::<NamespaceController>(),
        keyed::<Collector>(),
        Entry {
            name: "placement",
            warm: crate::placement::warm,
            run: |ctx| Box::pin(crate::placement::run(ctx)),
        },
    ]
}
