"""What people type who know git, restic or Pachyderm, and what `pfs` calls it."""

from __future__ import annotations

_ELSEWHERE = "what lies in a version is at /pfs/REPO@REVISION where the store is mounted; 'pfs get' copies it out"
_REMOTE = (
    "a store is used where it is, by many processes at once; 'pfs get --tar -' and 'pfs put --tar -' go through ssh"
)
ANSWERS = {
    "add": "nothing is staged: 'pfs put FILE REPO@BRANCH:/PATH' commits at once, 'pfs commit' all that was written in a mount",
    "blame": "'pfs log REPO@BRANCH -- PATH' shows the commits that changed a path",
    "checkout": _ELSEWHERE,
    "cherry-pick": "'pfs cp REPO@COMMIT:/PATH REPO@BRANCH:/PATH' takes paths of another commit",
    "clean": "'pfs discard REPO@BRANCH' gives up uncommitted changes",
    "clone": _REMOTE,
    "create": "'pfs repo create NAME' makes a repo",
    "delete": "'pfs rm' deletes files, 'pfs branch --delete' a branch, 'pfs repo delete' a repo",
    "export": "'pfs get' copies files out, with --tar as an archive",
    "fetch": _REMOTE,
    "grep": "search with any program in the mount; 'pfs log --grep' searches messages, 'pfs find' names",
    "help": "'pfs --help' lists the commands, 'pfs COMMAND --help' explains one",
    "history": "'pfs log REPO@BRANCH' shows the commits",
    "import": "'pfs put' copies files in, with --tar an archive",
    "list": "'pfs ls' lists branches and files, 'pfs repo list' repos",
    "mkdir": "directories come with their files: 'pfs put DIR REPO@BRANCH:/DIR', or mkdir in the mount",
    "mv": "rename in the mount, or 'pfs cp' to the new path, which copies no data, then 'pfs rm'; a branch: 'pfs branch --move'",
    "pull": _REMOTE,
    "push": _REMOTE,
    "rebase": "'pfs merge' brings a version into a branch",
    "remote": _REMOTE,
    "restore": "'pfs discard REPO@BRANCH:/PATH' drops changes, 'pfs cp REPO@COMMIT:/PATH REPO@BRANCH:/PATH' brings an older file back",
    "stash": "uncommitted work stays with its branch until 'pfs commit'; 'pfs branch REPO@NEW' makes one to work on beside it",
    "switch": "all branches are there at once, at /pfs/REPO@BRANCH where the store is mounted; 'pfs branch REPO@NEW' makes one",
    "unmount": "'pfs umount DIR'",
    "worktree": "'pfs begin REPO@BRANCH NAME' makes a place to work in apart from others; 'pfs branch' and 'pfs status' list them",
    "version": "'pfs --version' prints it",
}
"""By the name that is no command here: one line that says what to do."""
