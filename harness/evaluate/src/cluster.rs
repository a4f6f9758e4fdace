//! An evaluation as a job of a cluster: parts that run beside each other, and their merge.

use serde_json::{Value, json};

/// Of the jobs, the container and the claim.
const NAME: &str = "dpar-evaluate";
/// The user of the image (packaging/Dockerfile).
const USER: u32 = 10_001;
/// The folder of the paths in a container.
const FOLDER: &str = "/work";

/// An evaluation in parts.
#[derive(Debug, Clone)]
pub struct ClusterJob {
    /// The command line of the whole evaluation in words of a POSIX shell, without its output and its part.
    pub command: String,
    /// The output folder, as a word of a POSIX shell: parts go to `part-1`, `part-2` … in it, the whole to `merged`.
    pub output: String,
    /// How many parts.
    pub shards: u16,
    /// Container image, for Kubernetes.
    pub image: String,
    /// Exit codes that no other try changes.
    pub last: Vec<u8>,
}

impl ClusterJob {
    /// Part `number` of a shell's variable or expression, from 1. It goes on where an earlier try of it ended.
    fn part(&self, number: &str) -> String {
        let Self { command, output, shards, .. } = self;
        format!(r#"exec {command} --resume --shard "{number}/{shards}" -o {output}/part-"{number}""#)
    }

    /// Joins the parts. It is quick, and begins again where it was stopped.
    fn merge(&self) -> String {
        let Self { command, output, .. } = self;
        let parts = (1..=self.shards).map(|part| format!(" {output}/part-{part}"));
        format!("exec {} --resume -o {output}/merged --merge{}", command, parts.collect::<String>())
    }

    /// A bash script that submits an array job, and a job that merges when all parts are done.
    pub fn slurm(&self) -> String {
        let (part, merge, shards) = (self.part("$SLURM_ARRAY_TASK_ID"), self.merge(), self.shards);
        let options = "--requeue --open-mode=append";
        format!(
            r#"#!/bin/bash
# An evaluation in {shards} parts, and their merge when all are done. Call it with bash in the folder that the paths are relative to, which
# all nodes share; options of sbatch (partition, time, memory) follow. A part that is requeued goes on where it ended.
set -euo pipefail
array=$(sbatch --parsable --job-name={NAME} --array=1-{shards} {options} "$@" <<'PART'
#!/bin/bash
{part}
PART
)
sbatch --job-name={NAME}-merge --dependency=afterok:"${{array%%;*}}" --kill-on-invalid-dep=yes {options} "$@" <<'MERGE'
#!/bin/bash
{merge}
MERGE
"#
        )
    }

    /// A list of an Indexed Job and a Job for the merge, suspended, since Jobs do not wait for each other.
    pub fn kubernetes(&self) -> Value {
        let container = |script: String| {
            json!({
                "name": NAME,
                "image": self.image,
                // Kubernetes reads $(NAME) and $$ in it, in quotes too.
                "command": ["sh", "-c", script.replace('$', "$$")],
                "workingDir": FOLDER,
                "volumeMounts": [{ "name": "work", "mountPath": FOLDER }],
            })
        };
        let template = |script: String| {
            json!({
                "spec": {
                    "restartPolicy": "Never",
                    // The image runs as this user, who writes to the claim.
                    "securityContext": { "fsGroup": USER },
                    "containers": [container(script)],
                    "volumes": [{ "name": "work", "persistentVolumeClaim": { "claimName": NAME } }],
                },
            })
        };
        // A pod that was moved is no failure of the part; what no other try changes ends the whole job.
        let policy = json!({
            "rules": [
                { "action": "Ignore", "onPodConditions": [{ "type": "DisruptionTarget", "status": "True" }] },
                { "action": "FailJob", "onExitCodes": { "containerName": NAME, "operator": "In", "values": self.last } },
            ],
        });
        let job = |name: String, spec: Value| json!({ "apiVersion": "batch/v1", "kind": "Job", "metadata": { "name": name }, "spec": spec });
        let merge = format!("{NAME}-merge");
        let parts = json!({
            "completionMode": "Indexed",
            "completions": self.shards,
            "parallelism": self.shards,
            "backoffLimitPerIndex": 6,
            "maxFailedIndexes": 0,
            "podFailurePolicy": policy,
            "template": template(self.part("$((JOB_COMPLETION_INDEX + 1))")),
        });
        let joined = json!({
            "suspend": true,
            "backoffLimit": 6,
            "podFailurePolicy": policy,
            "template": template(self.merge()),
        });
        json!({
            "apiVersion": "v1",
            "kind": "List",
            "items": [job(NAME.to_owned(), parts), job(merge, joined)],
        })
    }

    /// How to begin with [`kubernetes`](Self::kubernetes), in words.
    pub fn next_step() -> String {
        format!(
            "name image and claim, `kubectl apply -f` it, and start the merge when the parts are done: kubectl wait --for=condition=complete \
             --timeout=-1s job/{NAME} && kubectl patch job/{NAME}-merge --type=merge -p '{{\"spec\":{{\"suspend\":false}}}}'"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job() -> ClusterJob {
        ClusterJob {
            command: "dpar-export evaluate --bundle b".to_owned(),
            output: "'out/run 1'".to_owned(),
            shards: 3,
            image: "image".to_owned(),
            last: vec![2, 3, 5],
        }
    }

    #[test]
    fn parts_go_on_and_the_merge_has_all_of_them() {
        let part = job().part("$N");
        assert_eq!(
            part,
            r#"exec dpar-export evaluate --bundle b --resume --shard "$N/3" -o 'out/run 1'/part-"$N""#
        );
        let merge = job().merge();
        assert!(merge.contains(" -o 'out/run 1'/merged --merge 'out/run 1'/part-1 "), "{merge}");
        assert!(merge.ends_with(" 'out/run 1'/part-2 'out/run 1'/part-3"), "{merge}");
    }

    #[test]
    fn what_no_other_try_changes_ends_the_job() {
        let list = job().kubernetes();
        let parts = &list["items"][0]["spec"];
        assert_eq!((&parts["completions"], &parts["completionMode"]), (&json!(3), &json!("Indexed")));
        assert_eq!(parts["podFailurePolicy"]["rules"][1]["onExitCodes"]["values"], json!([2, 3, 5]));
        assert_eq!(list["items"][1]["spec"]["suspend"], true);
    }
}
