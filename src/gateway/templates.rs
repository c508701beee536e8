//! Stored messages: `/v1/templates` and `/v1/templates/{name}`, of the app that `?app=` names.

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;

use super::Gateway;
use super::body::Held;
use super::params::Params;
use super::problem::Refusal;
use super::routes::Shared;
use crate::domain::fields::Problem;
use crate::domain::template::{read_template, unknown_template, wrong_template_name};
use crate::domain::text;
use crate::ports::{Broker, Store, Transport};
use crate::service::api::{TemplateRow, TemplateView};

/// The app of a request, and the version if the path takes one.
struct Of {
    app: String,
    version: Option<u32>,
}

impl Of {
    fn app(params: Params) -> Result<Self, Refusal> {
        Self::from_params(params, |_| None)
    }

    fn version(params: Params) -> Result<Self, Refusal> {
        Self::from_params(params, |params| params.get("version", "a number"))
    }

    fn from_params(
        mut params: Params,
        version: impl FnOnce(&mut Params) -> Option<u32>,
    ) -> Result<Self, Refusal> {
        let app = params.text("app").unwrap_or_else(|| "default".to_owned());
        let version = version(&mut params);
        params.finish()?;
        Ok(Self { app, version })
    }
}

pub(super) async fn list<B: Broker, S: Store, T: Transport>(
    State(gateway): Shared<B, S, T>,
    params: Params,
) -> Result<Json<Vec<TemplateRow>>, Refusal> {
    let of = Of::app(params)?;
    let stored = gateway.context.store.templates(&of.app).await?;
    Ok(Json(TemplateRow::all(&of.app, stored)))
}

pub(super) async fn show<B: Broker, S: Store, T: Transport>(
    State(gateway): Shared<B, S, T>,
    Path(name): Path<String>,
    params: Params,
) -> Result<Json<TemplateView>, Refusal> {
    let of = Of::version(params)?;
    let store = &gateway.context.store;
    match store.template(&of.app, &name, of.version).await? {
        Some(stored) => Ok(Json(TemplateView::of(&of.app, &name, stored)?)),
        None => Err(unknown(&gateway, &of, &name).await?),
    }
}

pub(super) async fn put<B: Broker, S: Store, T: Transport>(
    State(gateway): Shared<B, S, T>,
    Path(name): Path<String>,
    params: Params,
    body: Held,
) -> Result<Json<TemplateView>, Refusal> {
    let of = Of::app(params)?;
    let message = text::decode(&body.bytes)
        .map_err(|what| Refusal::BadBody(StatusCode::BAD_REQUEST, what))?;
    let mut problems = read_template(message).err().unwrap_or_default();
    problems.extend(wrong_template_name(&name).map(|what| Problem::new("name", what)));
    if !gateway.context.apps.contains_key(&of.app) {
        problems.push(Problem::new("app", format!("there is no app {:?}", of.app)));
    }
    if !problems.is_empty() {
        return Err(Refusal::BadRequest(problems));
    }
    let store = &gateway.context.store;
    let stored = store.put_template(&of.app, &name, message).await?;
    Ok(Json(TemplateView::of(&of.app, &name, stored)?))
}

pub(super) async fn delete<B: Broker, S: Store, T: Transport>(
    State(gateway): Shared<B, S, T>,
    Path(name): Path<String>,
    params: Params,
) -> Result<StatusCode, Refusal> {
    let of = Of::app(params)?;
    match gateway
        .context
        .store
        .delete_template(&of.app, &name)
        .await?
    {
        true => Ok(StatusCode::NO_CONTENT),
        false => Err(unknown(&gateway, &of, &name).await?),
    }
}

async fn unknown<B: Broker, S: Store, T>(
    gateway: &Gateway<B, S, T>,
    of: &Of,
    name: &str,
) -> Result<Refusal, Refusal> {
    let known = gateway.context.store.templates(&of.app).await?;
    Ok(Refusal::NotFound(match of.version {
        Some(version) => format!("there is no version {version} of {name:?} any more"),
        None => unknown_template(&of.app, name, &known).what,
    }))
}
