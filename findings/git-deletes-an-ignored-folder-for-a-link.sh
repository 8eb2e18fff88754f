#!/bin/sh
# git 2.x: `.gitignore` says `.venv/`, so a folder of that name is safe from `git add -A`; a symbolic link of that name is
# not, for the pattern means folders alone. Once somebody has committed such a link (as worktrees that share one
# environment have it), `git merge --ff-only` of that commit where `.venv` is a real, full folder neither refuses nor
# warns: it deletes the folder with all that is in it, for ignored files count as expendable, and puts the link there.
# Whoever ignores a folder that others may have as a link must write `.venv`, without the slash.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
export GIT_CONFIG_GLOBAL=/dev/null GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a@b GIT_COMMITTER_NAME=a GIT_COMMITTER_EMAIL=a@b
git --version
git init --quiet --initial-branch=main "$folder/main"
cd "$folder/main"
echo ".venv/" > .gitignore
git add -A && git commit --quiet -m "one"
mkdir -p .venv/lib && echo "hours of work" > .venv/lib/file
git worktree add --quiet -b other "$folder/other"
ln -s "$folder/main/.venv" "$folder/other/.venv"
git -C "$folder/other" add -A && git -C "$folder/other" commit --quiet -m "two"
git -C "$folder/other" ls-files | grep -qx .venv || { echo "this has changed: the link is ignored"; exit 1; }
git merge --ff-only other && echo "the merge says nothing"
test ! -e .venv/lib/file && test -L .venv || { echo "this has changed: the folder was kept"; exit 1; }
echo "deleted: .venv/lib/file; now $(ls -ld .venv | sed 's/.*\.venv -> .*/.venv is a link/')"
