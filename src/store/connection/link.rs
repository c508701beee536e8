//! An open connection to the ledger: to one server, or to all nodes of a cluster.

use std::sync::Arc;

use futures_util::future::try_join_all;
use redis::aio::{ConnectionLike, MultiplexedConnection};
use redis::cluster_async::ClusterConnection;
use redis::cluster_routing::{Route, SingleNodeRoutingInfo, SlotAddr};
use redis::{Cmd, Pipeline, RedisError, Value};
use tokio_util::task::AbortOnDropHandle;

use super::call::Call;
use crate::domain::ledger_url::Server;

/// Cheap to clone; all clones share the sockets.
#[derive(Clone)]
pub(super) struct Link {
    kind: Kind,
    /// What errors call the server.
    address: Arc<str>,
    watching: Option<Arc<AbortOnDropHandle<()>>>,
}

#[derive(Clone)]
enum Kind {
    One(Wire),
    Cluster(ClusterConnection),
}

/// A connection to one server, over which many callers send at once. It closes with its last clone.
#[derive(Clone)]
pub(super) struct Wire {
    connection: MultiplexedConnection,
    _driver: Arc<AbortOnDropHandle<()>>,
}

impl Wire {
    pub(super) fn new(connection: MultiplexedConnection, driver: AbortOnDropHandle<()>) -> Self {
        Self {
            connection,
            _driver: Arc::new(driver),
        }
    }

    /// Sends one command; an error reply of the server becomes an error.
    pub(super) async fn command(&mut self, cmd: &Cmd) -> Result<Value, RedisError> {
        self.connection
            .send_packed_command(cmd)
            .await?
            .extract_error()
    }
}

impl Link {
    pub(super) fn one(server: &Server, wire: Wire) -> Self {
        Self {
            kind: Kind::One(wire),
            address: server.to_string().into(),
            watching: None,
        }
    }

    pub(super) fn cluster(address: String, cluster: ClusterConnection) -> Self {
        Self {
            kind: Kind::Cluster(cluster),
            address: address.into(),
            watching: None,
        }
    }

    /// Keeps a task that runs as long as the connection is in use.
    pub(super) fn watch(&mut self, task: AbortOnDropHandle<()>) {
        self.watching = Some(Arc::new(task));
    }

    pub(super) fn address(&self) -> &str {
        &self.address
    }

    pub(super) fn is_cluster(&self) -> bool {
        matches!(self.kind, Kind::Cluster(_))
    }

    /// Sends one command; an error reply of the server becomes an error.
    pub(super) async fn command(&mut self, cmd: &Cmd) -> Result<Value, RedisError> {
        match &mut self.kind {
            Kind::One(wire) => wire.command(cmd).await,
            Kind::Cluster(cluster) => cluster.req_packed_command(cmd).await?.extract_error(),
        }
    }

    /// Sends commands together. In a cluster, where their keys are on several nodes, they are
    /// carried out in no order.
    pub(super) async fn together(&mut self, pipeline: &Pipeline) -> Result<Vec<Value>, RedisError> {
        match &mut self.kind {
            Kind::One(wire) => pipeline.query_async(&mut wire.connection).await,
            Kind::Cluster(cluster) => {
                let each = pipeline.cmd_iter().map(|cmd| {
                    let mut cluster = cluster.clone();
                    async move { cluster.req_packed_command(cmd).await?.extract_error() }
                });
                try_join_all(each).await
            }
        }
    }

    /// Sends commands one after the other.
    pub(super) async fn in_order(&mut self, pipeline: &Pipeline) -> Result<Vec<Value>, RedisError> {
        if !self.is_cluster() {
            return self.together(pipeline).await;
        }
        let mut replies = Vec::with_capacity(pipeline.len());
        for cmd in pipeline.cmd_iter() {
            replies.push(self.command(cmd).await?);
        }
        Ok(replies)
    }

    /// Sends commands over one socket without another caller's in between, in a cluster to the
    /// primary of the call's slot. Error replies stay in their places.
    pub(super) async fn on_one_socket(
        &mut self,
        pipeline: &Pipeline,
        call: &Call<'_>,
    ) -> Result<Vec<Value>, RedisError> {
        let count = pipeline.len();
        match &mut self.kind {
            Kind::One(wire) => {
                wire.connection
                    .send_packed_commands(pipeline, 0, count)
                    .await
            }
            Kind::Cluster(cluster) => {
                let route = Route::with_slot(call.slot(), SlotAddr::Master);
                let route = SingleNodeRoutingInfo::SpecificNode(route);
                cluster
                    .route_pipeline(pipeline.clone(), 0, count, route)
                    .await
            }
        }
    }
}
