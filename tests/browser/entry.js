export { FetchStore, get, open, root, slice } from "zarrita";
