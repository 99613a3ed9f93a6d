//! Registered models and their versions: numbers are kept, gaps included. What a version is made of came over with its run or logged
//! model; where it lay elsewhere, its files get a logged model of their own.

use aws_lc_rs::digest::{Context, SHA256};
use reqwest::Method;
use serde::Deserialize;
use serde_json::{Value, json};

use super::api::{found, made};
use super::files::{Holder, Origin, hex};
use super::forms::{Model, OneModel, OneVersion, Texts, Version};
use super::models::model_of;
use super::report::Kind;
use super::runs::{Moved, run_of, with, without};
use super::{IMPORTED, Import};
use crate::failure::Result;
use crate::progress;

/// Models in one page, and versions.
const MODELS_PAGE: &str = "100";
const VERSIONS_PAGE: &str = "1000";
/// Prompts are registered models that a search leaves out.
const PROMPTS: &str = "tags.`mlflow.prompt.is_prompt` = 'true'";
const PROMPT_TAG: &str = "mlflow.prompt.is_prompt";
/// Names experiments by their numbers, which are others here.
const EXPERIMENTS_TAG: &str = "_mlflow_experiment_ids";
/// The experiment that is always there.
const DEFAULT_EXPERIMENT: &str = "0";
const NO_STAGE: &str = "None";

impl Import<'_> {
    /// All registered models, prompts among them.
    pub(crate) async fn registry(&self, experiments: &[Moved]) -> Result<()> {
        let numbers: Texts =
            experiments.iter().filter_map(|moved| Some((moved.source.experiment_id.clone(), moved.target.clone()?))).collect();
        let bar = progress::steps(self.output, "registered models");
        for filter in ["", PROMPTS] {
            let mut token = None::<String>;
            loop {
                let mut asked = vec![("max_results", MODELS_PAGE)];
                asked.extend((!filter.is_empty()).then_some(("filter", filter)));
                asked.extend(token.as_deref().map(|token| ("page_token", token)));
                let page = self.source.api.page_get::<Model>("registered-models/search", "registered_models", &asked).await;
                let page = self.must(page)?;
                bar.inc_length(page.items.len() as u64);
                for model in page.items {
                    self.model(&model.name, &numbers).await?;
                    bar.inc(1);
                }
                token = page.next;
                if token.is_none() {
                    break;
                }
            }
        }
        bar.finish_and_clear();
        Ok(())
    }

    async fn model(&self, name: &str, numbers: &Texts) -> Result<()> {
        let of = format!("registered model {name}");
        let one = self.source.api.get::<OneModel>("registered-models/get", &[("name", name)]).await;
        let Some(OneModel { registered_model: mut source }) = self.settled(Kind::Model, &of, "", one)? else { return Ok(()) };
        if let Some(named) = source.tags.get_mut(EXPERIMENTS_TAG) {
            *named = renumbered(named, numbers);
        }
        let filter = filter(name, source.tags.contains_key(PROMPT_TAG));
        let query = [("filter", filter.as_str()), ("max_results", VERSIONS_PAGE)];
        let versions = self.source.api.all::<Version>("model-versions/search", "model_versions", &query).await;
        let Some(mut versions) = self.settled(Kind::Version, &of, "", versions)? else { return Ok(()) };
        versions.sort_by_key(|version| version.version);
        {
            let mut report = self.report.borrow_mut();
            report.source(Kind::Model, 1);
            report.source(Kind::Version, versions.len());
            if self.dry {
                report.source(Kind::ModelTag, source.tags.len());
                report.source(Kind::Alias, source.aliases().len());
                versions.iter().for_each(|version| report.source(Kind::VersionTag, version.tags.len()));
            }
        }
        if self.dry {
            for version in versions.iter().filter(|version| !is_prompt(&source, version)) {
                self.place(name, version, &of).await?;
            }
            return Ok(());
        }
        let Some(before) = self.model_made(&source).await? else { return Ok(()) };
        let mut wrote = false;
        for (key, value) in source.tags.iter().filter(|(key, _)| !before.tags.contains_key(*key)) {
            let set = self.target.post("registered-models/set-tag", &json!({"name": name, "key": key, "value": value})).await;
            let set = self.settled(Kind::ModelTag, &of, key, set)?;
            self.report.borrow_mut().written(Kind::ModelTag, usize::from(set.is_some()));
            wrote = true;
        }
        if before.description.is_empty() && !source.description.is_empty() {
            let asked = json!({"name": name, "description": source.description});
            let set = self.target.send::<Value>(Method::PATCH, "registered-models/update", &asked).await;
            self.settled(Kind::Model, &of, "description", set)?;
            wrote = true;
        }
        for version in &versions {
            self.version(name, &source, version).await?;
        }
        let there = before.aliases();
        for (alias, version) in source.aliases().iter().filter(|(alias, _)| !there.contains_key(*alias)) {
            let set = self.target.post("registered-models/alias", &json!({"name": name, "alias": alias, "version": version})).await;
            let set = self.settled(Kind::Alias, &of, alias, set)?;
            self.report.borrow_mut().written(Kind::Alias, usize::from(set.is_some()));
            wrote = true;
        }
        let after = if wrote { self.model_there(name).await? } else { Some(before) };
        if let Some(after) = after {
            let mut report = self.report.borrow_mut();
            report.target(Kind::Model, 1);
            report.same(Kind::Model, &of, "description", &source.description, &after.description);
            report.texts(Kind::ModelTag, &of, &source.tags, &without(after.tags.clone(), IMPORTED));
            report.texts(Kind::Alias, &of, &source.aliases(), &after.aliases());
        }
        Ok(())
    }

    async fn model_there(&self, name: &str) -> Result<Option<Model>> {
        let there = found(self.target.get::<OneModel>("registered-models/get", &[("name", name)]).await);
        Ok(self.settled(Kind::Model, &format!("registered model {name}"), "", there)?.flatten().map(|one| one.registered_model))
    }

    async fn model_made(&self, source: &Model) -> Result<Option<Model>> {
        let name = &source.name;
        if let Some(there) = self.model_there(name).await? {
            return Ok(Some(there));
        }
        let note = json!({"creation_timestamp": source.creation_timestamp}).to_string();
        let asked = json!({"name": name, "tags": [{"key": IMPORTED, "value": note}]});
        let create = made(self.target.post("registered-models/create", &asked).await);
        if self.settled(Kind::Model, &format!("registered model {name}"), "", create)?.is_none() {
            return Ok(None);
        }
        self.report.borrow_mut().written(Kind::Model, 1);
        self.model_there(name).await
    }

    async fn version(&self, name: &str, model: &Model, source: &Version) -> Result<()> {
        let number = source.version.unwrap_or_default().to_string();
        let of = format!("version {number} of {name}");
        let prompt = is_prompt(model, source);
        let place = if prompt { Some(source.source.clone()) } else { self.place(name, source, &of).await? };
        let there = self.version_there(name, &number, &of).await?;
        let before = match (there, place.clone()) {
            (Some(there), _) => there,
            (None, None) => return Ok(()),
            (None, Some(place)) => match self.version_made(name, &number, source, place, prompt, &of).await? {
                Some(made) => made,
                None => return Ok(()),
            },
        };
        let mut wrote = false;
        for (key, value) in source.tags.iter().filter(|(key, _)| !before.tags.contains_key(*key)) {
            let asked = json!({"name": name, "version": number, "key": key, "value": value});
            let set = self.settled(Kind::VersionTag, &of, key, self.target.post("model-versions/set-tag", &asked).await)?;
            self.report.borrow_mut().written(Kind::VersionTag, usize::from(set.is_some()));
            wrote = true;
        }
        if before.description.is_empty() && !source.description.is_empty() {
            let asked = json!({"name": name, "version": number, "description": source.description});
            let set = self.target.send::<Value>(Method::PATCH, "model-versions/update", &asked).await;
            self.settled(Kind::Version, &of, "description", set)?;
            wrote = true;
        }
        if before.current_stage == NO_STAGE && !matches!(source.current_stage.as_str(), "" | NO_STAGE) {
            let asked = json!({"name": name, "version": number, "stage": source.current_stage, "archive_existing_versions": false});
            self.settled(Kind::Version, &of, "stage", self.target.post("model-versions/transition-stage", &asked).await)?;
            wrote = true;
        }
        let after = if wrote { self.version_there(name, &number, &of).await? } else { Some(before) };
        if let Some(after) = after {
            self.version_compared(source, &after, place.as_deref(), &of);
        }
        Ok(())
    }

    async fn version_there(&self, name: &str, number: &str, of: &str) -> Result<Option<Version>> {
        let there = found(self.target.get::<OneVersion>("model-versions/get", &[("name", name), ("version", number)]).await);
        Ok(self.settled(Kind::Version, of, "", there)?.flatten().map(|one| one.model_version))
    }

    async fn version_made(
        &self,
        name: &str,
        number: &str,
        source: &Version,
        place: String,
        prompt: bool,
        of: &str,
    ) -> Result<Option<Version>> {
        let note = json!({"creation_timestamp": source.creation_timestamp, "user_id": source.user_id, "source": source.source}).to_string();
        let mut tags = vec![json!({"key": IMPORTED, "value": note})];
        tags.extend(source.tags.iter().filter(|_| prompt).map(|(key, value)| json!({"key": key, "value": value})));
        let logged = named_by(&place, &source.model_id);
        let mut asked = json!({"name": name, "version": number, "source": place, "tags": tags});
        let text = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
        with(&mut asked, "run_id", text(&source.run_id));
        with(&mut asked, "run_link", text(&source.run_link));
        with(&mut asked, "model_id", text(&source.model_id).filter(|_| logged));
        let create = made(self.target.post("model-versions/create", &asked).await);
        if self.settled(Kind::Version, of, "", create)?.is_none() {
            return Ok(None);
        }
        self.report.borrow_mut().written(Kind::Version, 1);
        self.version_there(name, number, of).await
    }

    fn version_compared(&self, source: &Version, there: &Version, place: Option<&str>, of: &str) {
        let mut report = self.report.borrow_mut();
        report.target(Kind::Version, 1);
        let stage = |stage: &str| if stage.is_empty() { NO_STAGE.to_owned() } else { stage.to_owned() };
        report.same(Kind::Version, of, "stage", &stage(&source.current_stage), &stage(&there.current_stage));
        report.same(Kind::Version, of, "description", &source.description, &there.description);
        if let Some(place) = place {
            report.same(Kind::Version, of, "source", place, &there.source);
        }
        for (name, source, there) in [("run", &source.run_id, &there.run_id), ("run link", &source.run_link, &there.run_link)] {
            // Where the source says nothing, the service knows it from the logged model.
            if !source.is_empty() {
                report.same(Kind::Version, of, name, source, there);
            }
        }
        report.texts(Kind::VersionTag, of, &source.tags, &without(there.tags.clone(), IMPORTED));
    }

    /// Where the files of a version are in the target.
    async fn place(&self, name: &str, source: &Version, of: &str) -> Result<Option<String>> {
        #[derive(Deserialize)]
        struct Uri {
            artifact_uri: String,
        }
        if source.source.strip_prefix("models:/").is_some_and(|rest| rest.starts_with("m-")) {
            return Ok(Some(source.source.trim_end_matches('/').to_owned()));
        }
        let number = source.version.unwrap_or_default().to_string();
        let uri = self.source.api.get::<Uri>("model-versions/get-download-uri", &[("name", name), ("version", &number)]).await;
        let Some(Uri { artifact_uri: uri }) = self.settled(Kind::Version, of, "artifacts", uri)? else { return Ok(None) };
        if uri.starts_with("runs:/") {
            return Ok(Some(uri));
        }
        if !source.run_id.is_empty() {
            let run = self.settled(Kind::Version, of, "run", run_of(&self.source.api, &source.run_id).await)?.flatten();
            if let Some(rest) = run.and_then(|run| below(&run.info.artifact_uri, &uri)) {
                return Ok(Some(format!("runs:/{}/{rest}", source.run_id).trim_end_matches('/').to_owned()));
            }
        }
        let (root, rest) = model_in(&uri).unwrap_or((&uri, ""));
        if let Some(id) = root.rsplit('/').nth(1).filter(|id| id.starts_with("m-") && root.ends_with("/artifacts")) {
            return Ok(Some(format!("models:/{id}/{rest}").trim_end_matches('/').to_owned()));
        }
        self.own_model(name, &number, source, &uri, of).await
    }

    /// Files that belong to nothing that came over, under an id that is the same at every try.
    async fn own_model(&self, name: &str, number: &str, source: &Version, uri: &str, of: &str) -> Result<Option<String>> {
        let mut digest = Context::new(&SHA256);
        digest.update(format!("{name}\0{number}\0{uri}").as_bytes());
        let id = format!("m-{}", hex(digest).get(..32).unwrap_or_default());
        let from = match (self.source.path(uri), uri.strip_prefix("mlflow-artifacts:/")) {
            (Some(path), _) => Origin::Path(path),
            (None, Some(rest)) => Origin::Proxy(rest.trim_start_matches('/').to_owned()),
            (None, None) => {
                self.differs(Kind::Artifact, of, "", format!("its files at `{uri}` belong to no run, and MLflow does not list them"));
                return Ok(None);
            }
        };
        let to = Holder::Model { experiment: DEFAULT_EXPERIMENT.to_owned(), id: id.clone() };
        if self.dry {
            return self.files(&from, &to, true, false).await.map(|_| None);
        }
        let there = self.settled(Kind::Artifact, of, "", model_of(self.target, &id).await)?.flatten();
        let fresh = there.is_none();
        if fresh {
            let shown = format!("{name}-{number}").replace(['/', ':', '.', '%', '"', '\''], "_");
            let mut asked = json!({"model_id": id, "experiment_id": DEFAULT_EXPERIMENT, "name": shown});
            with(&mut asked, "source_run_id", Some(source.run_id.clone()).filter(|run| !run.is_empty()));
            if self.settled(Kind::Artifact, of, "", made(self.target.post("logged-models", &asked).await))?.is_none() {
                return Ok(None);
            }
        }
        if self.files(&from, &to, fresh, true).await? == 0 {
            self.differs(Kind::Artifact, of, "", format!("there is no file at `{uri}`"));
        }
        if there.is_none_or(|model| model.info.status == "LOGGED_MODEL_PENDING") {
            let ready = json!({"status": "LOGGED_MODEL_READY"});
            let done = self.target.send::<Value>(Method::PATCH, &format!("logged-models/{id}"), &ready).await;
            self.settled(Kind::Artifact, of, "", done)?;
        }
        Ok(Some(format!("models:/{id}")))
    }
}

fn is_prompt(model: &Model, version: &Version) -> bool {
    model.tags.contains_key(PROMPT_TAG) || version.tags.contains_key(PROMPT_TAG)
}

/// `,3,7,`: the experiments that a prompt is shown in, by the numbers that they have now.
fn renumbered(named: &str, numbers: &Texts) -> String {
    let number = |number: &str| numbers.get(number).cloned().unwrap_or_else(|| number.to_owned());
    named.split(',').map(number).collect::<Vec<_>>().join(",")
}

/// Whether a place is in this logged model.
fn named_by(place: &str, model: &str) -> bool {
    place.strip_prefix("models:/").is_some_and(|rest| rest.split('/').next() == Some(model))
}

/// The part of an address below another one.
fn below(root: &str, uri: &str) -> Option<String> {
    let plain = |uri: &str| uri.trim_start_matches("file://").trim_end_matches('/').to_owned();
    let (root, uri) = (plain(root), plain(uri));
    if root.is_empty() {
        return None;
    }
    uri.strip_prefix(&root).filter(|rest| rest.is_empty() || rest.starts_with('/')).map(|rest| rest.trim_start_matches('/').to_owned())
}

/// An address of a logged model's files, and what is below.
fn model_in(uri: &str) -> Option<(&str, &str)> {
    let at = uri.find("/models/m-")?;
    let end = at + uri.get(at..)?.find("/artifacts")? + "/artifacts".len();
    Some((uri.get(..end)?, uri.get(end..)?.trim_start_matches('/')))
}

/// Versions of one model, in MLflow's language.
fn filter(name: &str, prompt: bool) -> String {
    let quote = if name.contains('\'') { '"' } else { '\'' };
    let named = format!("name = {quote}{name}{quote}");
    if prompt { format!("{named} AND {PROMPTS}") } else { named }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_found_in_runs_and_models() {
        let table = [
            ("/m/1/r/artifacts", "/m/1/r/artifacts/model", Some("model")),
            ("file:///m/1/r/artifacts", "/m/1/r/artifacts/a/b/", Some("a/b")),
            ("mlflow-artifacts:/1/r/artifacts", "mlflow-artifacts:/1/r/artifacts", Some("")),
            ("/m/1/r/artifacts", "/m/1/r/artifacts2/model", None),
            ("/m/1/r/artifacts", "/elsewhere", None),
            ("", "/elsewhere", None),
        ];
        for (root, uri, rest) in table {
            assert_eq!(below(root, uri).as_deref(), rest, "{uri}");
        }
        assert_eq!(model_in("/m/1/models/m-7/artifacts/x/y"), Some(("/m/1/models/m-7/artifacts", "x/y")));
        assert_eq!(model_in("/m/1/r/artifacts"), None);
    }

    #[test]
    fn prompts_name_experiments_by_their_new_numbers() {
        let numbers = Texts::from([("3".to_owned(), "8".to_owned()), ("7".to_owned(), "3".to_owned())]);
        assert_eq!(renumbered(",3,7,9,", &numbers), ",8,3,9,");
    }

    #[test]
    fn names_are_quoted() {
        assert_eq!(filter("a", false), "name = 'a'");
        assert_eq!(filter("o'b", true), format!("name = \"o'b\" AND {PROMPTS}"));
    }
}
