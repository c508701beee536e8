//! Reads and writes stored messages.

use fanwise_client::http::Refused;
use http::Method;

use super::Access;
use super::server::Question;
use crate::exit::{Exit, Failure, OrExit as _};
use crate::ports::Templates as _;
use crate::service::api::{TemplateRow, TemplateView};

impl Access {
    pub(in crate::cli) async fn put_template(
        &self,
        app: &str,
        name: &str,
        message: String,
    ) -> Result<TemplateView, Failure> {
        match self {
            Self::Direct(direct) => {
                let put = direct.ledger()?.put_template(app, name, &message);
                let stored = put.await.or_exit(Exit::Unavailable)?;
                TemplateView::of(app, name, stored).or_exit(Exit::Unavailable)
            }
            Self::Server(server) => {
                let path = format!("/v1/templates/{name}?app={app}");
                let put = Question::new(Method::PUT, &path).with(super::JSON, message);
                server.told(put).await
            }
        }
    }

    pub(in crate::cli) async fn template(
        &self,
        app: &str,
        name: &str,
        version: Option<u32>,
    ) -> Result<Option<TemplateView>, Failure> {
        match self {
            Self::Direct(direct) => {
                let stored = direct.ledger()?.template(app, name, version);
                let stored = stored.await.or_exit(Exit::Unavailable)?;
                let view = stored.map(|stored| TemplateView::of(app, name, stored));
                view.transpose().or_exit(Exit::Unavailable)
            }
            Self::Server(server) => {
                let version = version.map_or_else(String::new, |it| format!("&version={it}"));
                let path = format!("/v1/templates/{name}?app={app}{version}");
                server.get(&path).await
            }
        }
    }

    pub(in crate::cli) async fn templates(&self, app: &str) -> Result<Vec<TemplateRow>, Failure> {
        match self {
            Self::Direct(direct) => {
                let stored = direct.ledger()?.templates(app);
                let stored = stored.await.or_exit(Exit::Unavailable)?;
                Ok(TemplateRow::all(app, stored))
            }
            Self::Server(server) => {
                let rows = server.get(&format!("/v1/templates?app={app}")).await?;
                Ok(rows.unwrap_or_default())
            }
        }
    }

    /// Returns `false` if there was no stored message of that name.
    pub(in crate::cli) async fn delete_template(
        &self,
        app: &str,
        name: &str,
    ) -> Result<bool, Failure> {
        match self {
            Self::Direct(direct) => {
                let delete = direct.ledger()?.delete_template(app, name);
                delete.await.or_exit(Exit::Unavailable)
            }
            Self::Server(server) => {
                let path = format!("/v1/templates/{name}?app={app}");
                let reply = server.ask(Question::new(Method::DELETE, &path)).await?;
                match reply.status {
                    204 => Ok(true),
                    404 => Ok(false),
                    _ => Err(server.refused(&Refused::of(&reply))),
                }
            }
        }
    }
}
